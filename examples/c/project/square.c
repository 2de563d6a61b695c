/* The area of a square. */
#include "shapes.h"

double square_area(double side)
{
    return side * side;
}
