/* Prints COUNT lines (15), one every DELAY milliseconds (200). It never flushes: the lines must come one by one anyway. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv)
{
    int count = argc > 1 ? atoi(argv[1]) : 15;
    long delay = argc > 2 ? atol(argv[2]) : 200;
    struct timespec pause = { delay / 1000, delay % 1000 * 1000000L };

    for (int i = 1; i <= count; i++) {
        printf("tick %d of %d\n", i, count);
        nanosleep(&pause, NULL);
    }
    return 0;
}
