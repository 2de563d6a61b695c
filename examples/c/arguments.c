/* Shows its arguments, one a line, exactly as they were given. */
#include <stdio.h>

int main(int argc, char **argv)
{
    printf("%d argument(s)\n", argc - 1);
    for (int i = 1; i < argc; i++)
        printf("%d: %s\n", i, argv[i]);
    return 0;
}
