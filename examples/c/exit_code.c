/* Says why on standard error and ends with exit code 3. */
#include <stdio.h>

int main(void)
{
    fputs("Something is wrong: ending with 3.\n", stderr);
    return 3;
}
