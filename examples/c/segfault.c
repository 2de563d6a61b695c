/* Writes where it may not: ended by signal 11 (a shell shows 139). */
#include <stdio.h>

int main(void)
{
    volatile int *nowhere = NULL;

    puts("About to crash.");
    *nowhere = 1;
    return 0;
}
