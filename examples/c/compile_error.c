/* Does not compile: the compiler's own words must reach the reader. */
#include <stdio.h>

int main(void)
{
    int answer = 42
    printf("%d\n", answer);
    return 0;
}
