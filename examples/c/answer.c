/* Reads names line by line and answers each at once, until the input ends. */
#include <stdio.h>
#include <string.h>

int main(void)
{
    char line[256];
    int count = 0;

    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\r\n")] = '\0';
        printf("Hello, %s!\n", line);
        count++;
    }
    printf("%d answered.\n", count);
    return 0;
}
