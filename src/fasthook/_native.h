/* What C says and Cython cannot: a byte search by vector instructions, and atomics.

   fh_plain_run  returns the first byte in [p, end) that a JSON string may not hold as it
                 stands: a quote, a backslash or a control character (RFC 8259, section 7);
                 end if there is none. It reads nothing at or beyond end.
   fh_log2       the place of the highest set bit of a word that is not 0.
   fh_load/store 64-bit words that one process writes and others read (C11 atomics). */
#ifndef FASTHOOK_NATIVE_H
#define FASTHOOK_NATIVE_H

#include <stdint.h>
#include <string.h>

#if defined(__SSE2__) && defined(__GNUC__) && !defined(FASTHOOK_NO_SIMD)
#define FH_SSE2 1
#include <emmintrin.h>
#endif

/* What a JSON number carries exactly (RFC 8259, section 6); Telegram's ids are below 2 * 10^9. */
#define FH_MAX_UPDATE_ID ((int64_t)9007199254740991) /* 2^53 - 1 */

static inline int fh_hex(unsigned char b) {
    return (unsigned char)(b - '0') < 10 ? b - '0' : (unsigned char)((b | 0x20) - 'a') < 6 ? (b | 0x20) - 'a' + 10 : -1;
}

/* Behind the last whole \\uXXXX of those that begin at p: text that is not Latin comes as long runs of them. */
static inline const unsigned char *fh_unicode_run(const unsigned char *p, const unsigned char *end) {
    while (end - p >= 6 && p[0] == '\\' && p[1] == 'u' && (fh_hex(p[2]) | fh_hex(p[3]) | fh_hex(p[4]) | fh_hex(p[5])) >= 0)
        p += 6;
    return p;
}

static inline const unsigned char *fh_plain_run(const unsigned char *p, const unsigned char *end) {
#ifdef FH_SSE2
    const __m128i quote = _mm_set1_epi8('"'), slash = _mm_set1_epi8('\\'), ctl = _mm_set1_epi8(0x1f);
    while (end - p >= 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)p);
        __m128i hit = _mm_or_si128(_mm_or_si128(_mm_cmpeq_epi8(v, quote), _mm_cmpeq_epi8(v, slash)),
                                   _mm_cmpeq_epi8(_mm_min_epu8(v, ctl), v));
        int mask = _mm_movemask_epi8(hit);
        if (mask) return p + __builtin_ctz((unsigned)mask);
        p += 16;
    }
#else
    const uint64_t ones = 0x0101010101010101u, high = 0x8080808080808080u;
    while (end - p >= 8) {
        uint64_t v, q, s;
        memcpy(&v, p, 8);
        q = v ^ (ones * '"');
        s = v ^ (ones * '\\');
        /* a zero byte in q or s, or a byte below 0x20 in v; false alarms only send us to the loop below */
        if ((((q - ones) & ~q) | ((s - ones) & ~s) | ((v - ones * 0x20) & ~v)) & high) break;
        p += 8;
    }
#endif
    while (p < end && *p != '"' && *p != '\\' && *p >= 0x20) p++;
    return p;
}

#if defined(_MSC_VER)
#include <intrin.h>
static inline int fh_log2(uint64_t v) { unsigned long at; _BitScanReverse64(&at, v); return (int)at; }
/* aligned 64-bit accesses are atomic on the 64-bit Windows targets, and volatile orders them (/volatile:ms) */
static inline int64_t fh_load(const int64_t *p) { return *(const volatile int64_t *)p; }
static inline void fh_store(int64_t *p, int64_t v) { *(volatile int64_t *)p = v; }
#else
static inline int fh_log2(uint64_t v) { return 63 - __builtin_clzll(v); }
static inline int64_t fh_load(const int64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void fh_store(int64_t *p, int64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
#endif

#endif
