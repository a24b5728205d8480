/* _native.h beside the obvious way, on random strings that end where their memory ends. */
#include <stdio.h>
#include <stdlib.h>

#include "_native.h"

static const unsigned char *plain_run(const unsigned char *p, const unsigned char *end) {
    while (p < end && *p != '"' && *p != '\\' && *p >= 0x20) p++;
    return p;
}

static int highest_bit(uint64_t v) {
    int at = -1;
    for (; v; v >>= 1) at++;
    return at;
}

int main(void) {
    srand(1);
    for (int n = 0; n < 300000; n++) {
        const int size = rand() % 70, rare = 1 + rand() % 60;
        unsigned char *text = malloc(size ? (size_t)size : 1);
        if (!text) return 2;
        for (int i = 0; i < size; i++) text[i] = (unsigned char)(rand() % rare ? 0x20 + rand() % 224 : rand() % 256);
        if (fh_plain_run(text, text + size) != plain_run(text, text + size)) return puts("fh_plain_run"), 1;
        free(text);
    }
    for (int n = 0; n < 100000; n++) {
        const uint64_t v = ((uint64_t)rand() << 33 ^ (uint64_t)rand() << 11 ^ 1) >> rand() % 64;
        if (v && fh_log2(v) != highest_bit(v)) return puts("fh_log2"), 1;
    }
    int64_t word = 0;
    fh_store(&word, FH_MAX_UPDATE_ID);
    if (fh_load(&word) != ((int64_t)1 << 53) - 1) return puts("fh_load"), 1;
    return 0;
}
