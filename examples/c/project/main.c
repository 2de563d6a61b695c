/* A program of several files: sent as a folder, compiled together. */
#include <stdio.h>

#include "shapes.h"

int main(void)
{
    printf("circle of 2: %.2f\n", circle_area(2.0));
    printf("square of 3: %.2f\n", square_area(3.0));
    return 0;
}
