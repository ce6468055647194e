/* counter.py for user lands that have neither Python nor a shell worth the name: numbers its lines, twenty a second. */
#include <stdio.h>
#include <time.h>

int main(void) {
    const struct timespec pace = {0, 50000000};
    for (unsigned long number = 1;; number++) {
        printf("line %lu\n", number);
        fflush(stdout);
        nanosleep(&pace, NULL);
    }
}
