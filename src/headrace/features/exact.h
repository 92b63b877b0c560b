/* Sums, means and variances of float64 and int64 values, exact until they are rounded once.
 *
 * A sum is one long integer over the whole range of doubles (a superaccumulator, as in Neal, arXiv:1505.05571); only
 * the words that values have touched are looked at. What is defined: sum = RN(S), mean = RN(S / n), variance =
 * RN((n Q - S^2) / (n (n - 1))), with S and Q the exact sums of values and squares and RN rounding to nearest, ties to
 * even. An exact zero is +0.0, a result that is too large infinite. Checked against Python's `fractions`.
 */
#ifndef HEADRACE_EXACT_H
#define HEADRACE_EXACT_H

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef unsigned __int128 u128;

enum { FLOAT = 0, INT = 1, BOOL = 2, REF = 3 };

/* A sum is an integer times 2^-1088: doubles are multiples of 2^-1074, and 1088 = 17 * 64 puts integers on word 17.
 * Below 2^1024, with 2^32 summands: 2,144 bits, 34 words, one more for the upper part of a shifted value. Squares are
 * integers times 2^-2176 below 2^2048: 4,256 bits, 67 words, one more. */
enum { UNIT = 1088, UNIT_WORD = 17, SUM_WORDS = 35, SQUARE_WORDS = 68, WORK_WORDS = 2 * SUM_WORDS + 2 };

/* Positive and negative values are kept apart, so that no carry runs through sign bits and values can be taken out
 * again; words outside [low, high) and [square_low, square_high) are zero. */
typedef struct {
  int32_t low, high, square_low, square_high;
  int64_t plus_inf, minus_inf, nans;
  uint64_t side[2][SUM_WORDS];
  uint64_t square[SQUARE_WORDS];
} Sum;

static void sum_clear(Sum *s) {
  if (s->high > s->low) {
    size_t bytes = (size_t)(s->high - s->low) * 8;
    memset(s->side[0] + s->low, 0, bytes);
    memset(s->side[1] + s->low, 0, bytes);
  }
  if (s->square_high > s->square_low) {
    memset(s->square + s->square_low, 0, (size_t)(s->square_high - s->square_low) * 8);
  }
  s->low = SUM_WORDS;
  s->square_low = SQUARE_WORDS;
  s->high = s->square_high = 0;
  s->plus_inf = s->minus_inf = s->nans = 0;
}

/* Add n words at word i; return the end of what changed. A carry past `end` cannot come from true data and is lost. */
static inline int add_words(uint64_t *d, int i, int end, const uint64_t *w, int n) {
  uint64_t carry = 0;
  for (int k = 0; k < n; k++, i++) {
    u128 t = (u128)d[i] + w[k] + carry;
    d[i] = (uint64_t)t;
    carry = (uint64_t)(t >> 64);
  }
  for (; carry && i < end; i++) carry = ++d[i] == 0;
  return i;
}

static inline void take_words(uint64_t *d, int i, int end, const uint64_t *w, int n) {
  uint64_t borrow = 0;
  for (int k = 0; k < n; k++, i++) {
    u128 t = (u128)d[i] - w[k] - borrow;
    d[i] = (uint64_t)t;
    borrow = (uint64_t)(t >> 64) & 1;
  }
  for (; borrow && i < end; i++) borrow = d[i]-- == 0;
}

static inline void widen(int32_t *low, int32_t *high, int from, int to) {
  if (from < *low) *low = from;
  if (to > *high) *high = to;
}

static void count_odd(Sum *s, uint64_t bits, int by) {
  if (bits << 12) s->nans += by;
  else if (bits >> 63) s->minus_inf += by;
  else s->plus_inf += by;
}

/* Add or take out q * 4^place. */
static void change_square(Sum *s, u128 q, int place, int by) {
  int i = 2 * place >> 6, b = 2 * place & 63;
  uint64_t low = (uint64_t)q, high = (uint64_t)(q >> 64);
  uint64_t w[3] = {low << b, b ? high << b | low >> (64 - b) : high, b ? high >> (64 - b) : 0};
  if (by > 0) widen(&s->square_low, &s->square_high, i, add_words(s->square, i, SQUARE_WORDS, w, 3));
  else take_words(s->square, i, SQUARE_WORDS, w, 3);
}

/* Add (by = 1) or take out again (by = -1) a value, with its square if that is asked for. */
static inline void sum_change(Sum *s, int64_t word, int type, int squares, int by) {
  uint64_t bits = (uint64_t)word, digits = word < 0 ? 0 - bits : bits;
  int negative = word < 0, place = UNIT;
  if (type == FLOAT) {
    int e = (int)(bits >> 52) & 2047;
    if (e == 2047) {
      count_odd(s, bits, by);
      return;
    }
    digits = (bits & 0xFFFFFFFFFFFFF) | (uint64_t)(e != 0) << 52;
    place = UNIT - 1074 + (e ? e - 1 : 0);
  }
  if (digits == 0) return;
  int i = place >> 6, b = place & 63;
  uint64_t w[2] = {digits << b, b ? digits >> (64 - b) : 0};
  if (by > 0) widen(&s->low, &s->high, i, add_words(s->side[negative], i, SUM_WORDS, w, 2));
  else take_words(s->side[negative], i, SUM_WORDS, w, 2);
  if (squares) change_square(s, (u128)digits * digits, place, by);
}

/* Doubles on their way to a sum, by sign and exponent: the digits of one exponent are added up as they are, and moved to
 * their place all at once. BIN_ROOM values fit. */
enum { BINS = 64, BIN_ROOM = 2048, FEW = 16 };
typedef struct {
  uint64_t name, digits; /* name: sign and exponent, plus one; 0 at first */
  u128 squares;
} Bin;

static void bin_empty(Sum *s, Bin *bin) {
  int place = UNIT - 1075 + (int)((bin->name - 1) & 2047), i = place >> 6;
  u128 shifted = (u128)bin->digits << (place & 63);
  uint64_t w[2] = {(uint64_t)shifted, (uint64_t)(shifted >> 64)};
  widen(&s->low, &s->high, i, add_words(s->side[(bin->name - 1) >> 11], i, SUM_WORDS, w, 2));
  if (bin->squares) change_square(s, bin->squares, place, 1);
  bin->digits = 0;
  bin->squares = 0;
}

/* Add n <= BIN_ROOM doubles. Bins are empty before and after. */
static inline void bins_add(Sum *s, Bin *bins, const int64_t *word, int64_t n, int squares) {
  uint64_t used = 0;
  for (int64_t i = 0; i < n; i++) {
    uint64_t bits = (uint64_t)word[i], e = bits >> 52, at = (e ^ e >> 6) % BINS;
    Bin *bin = bins + at;
    if (bin->name != e + 1) {
      if ((e & 2047) == 0 || (e & 2047) == 2047) { /* zero, subnormal, not finite */
        sum_change(s, word[i], FLOAT, squares, 1);
        continue;
      }
      if (used >> at & 1) bin_empty(s, bin);
      bin->name = e + 1;
    }
    uint64_t digits = (bits & 0xFFFFFFFFFFFFF) | (uint64_t)1 << 52;
    used |= (uint64_t)1 << at;
    bin->digits += digits;
    if (squares) bin->squares += (u128)digits * digits;
  }
  for (; used; used &= used - 1) bin_empty(s, bins + __builtin_ctzll(used));
}

static void sum_add(Sum *s, Bin *bins, const int64_t *word, int64_t n, int type, int squares) {
  if (type == FLOAT && n >= FEW) bins_add(s, bins, word, n, squares);
  else for (int64_t i = 0; i < n; i++) sum_change(s, word[i], type, squares, 1);
}

/* The size of a sum: words [low, high) of `word`, trimmed; sign -1, 0 or 1. */
typedef struct {
  int low, high, sign;
  uint64_t word[SUM_WORDS];
} Total;

static void total_of(const Sum *s, Total *t) {
  uint64_t borrow = 0;
  t->low = s->low < s->high ? s->low : 0;
  t->high = s->high; /* 0 if no word was touched */
  for (int i = s->low; i < s->high; i++) {
    u128 d = (u128)s->side[0][i] - s->side[1][i] - borrow;
    t->word[i] = (uint64_t)d;
    borrow = (uint64_t)(d >> 64) & 1;
  }
  t->sign = borrow ? -1 : 1;
  if (borrow) {
    uint64_t carry = 1;
    for (int i = s->low; i < s->high; i++) {
      t->word[i] = ~t->word[i] + carry;
      carry = carry && t->word[i] == 0;
    }
  }
  while (t->high > t->low && t->word[t->high - 1] == 0) t->high--;
  while (t->low < t->high && t->word[t->low] == 0) t->low++;
  if (t->low >= t->high) t->sign = 0;
}

/* Divide four words in place; return whether a remainder is left. Halves of words keep to 64-bit divisions. */
static int divide(uint64_t *q, uint32_t d) {
  uint64_t rest = 0;
  for (int i = 3; i >= 0; i--) {
    uint64_t high = rest << 32 | q[i] >> 32;
    uint64_t low = high % d << 32 | (q[i] & 0xFFFFFFFF);
    q[i] = (high / d) << 32 | low / d;
    rest = low % d;
  }
  return rest != 0;
}

/* Round 64 bits below a leading one of weight 2^e, `sticky` if anything follows: to nearest, ties to even. */
static double round_bits(uint64_t top, int sticky, int64_t e) {
  if (e > 1023) return INFINITY;
  int keep = e >= -1022 ? 53 : (int)(e + 1075); /* fewer bits for a subnormal result */
  if (keep < 0) return 0.0;
  int cut = 64 - keep;
  uint64_t kept = keep ? top >> cut : 0, half = top >> (cut - 1) & 1, below = top << (64 - cut) << 1;
  if (half && (below || sticky || (kept & 1))) kept++;
  /* A kept leading one adds one to the exponent field, and rounding up to 2^53 another: also into infinity. */
  uint64_t bits = keep == 53 ? ((uint64_t)(e + 1022) << 52) + kept : kept;
  double value;
  memcpy(&value, &bits, 8);
  return value;
}

/* Round w[0..n) * 2^exponent / (d1 * d2). floor(floor(a / b) / c) = floor(a / bc), so two short divisions do; four
 * words hold at least 193 bits, of which 129 are left, and what lies below them only breaks ties. */
static double round_words(const uint64_t *w, int n, int64_t exponent, uint32_t d1, uint32_t d2) {
  while (n && w[n - 1] == 0) n--;
  if (n == 0) return 0.0;
  uint64_t q[4];
  int sticky = 0, top = 3;
  for (int k = 0; k < 4; k++) q[3 - k] = n > k ? w[n - 1 - k] : 0;
  for (int i = 0; i < n - 4; i++) sticky |= w[i] != 0;
  if (d1 > 1) sticky |= divide(q, d1);
  if (d2 > 1) sticky |= divide(q, d2);
  while (q[top] == 0) top--;
  int shift = __builtin_clzll(q[top]);
  int64_t e = exponent + 64 * (n - 4 + top) + 63 - shift;
  uint64_t bits = q[top] << shift;
  if (top) {
    if (shift) bits |= q[top - 1] >> (64 - shift);
    sticky |= q[top - 1] << shift != 0;
  }
  for (int i = 0; i < top - 1; i++) sticky |= q[i] != 0;
  return round_bits(bits, sticky, e);
}

/* Return what infinities and NaN decide, 0.0 if there are none. */
static double odd_value(const Sum *s) {
  if (s->nans || (s->plus_inf && s->minus_inf)) return NAN;
  return s->plus_inf ? INFINITY : s->minus_inf ? -INFINITY : 0.0;
}

/* sum = RN(S), mean = RN(S / n): 1 <= n < 2^32. */
static double sum_over(const Sum *s, uint32_t n) {
  double odd = odd_value(s);
  if (odd != 0.0) return odd;
  Total t;
  total_of(s, &t);
  double value = round_words(t.word + t.low, t.high - t.low, 64 * t.low - UNIT, n, 1);
  return t.sign < 0 ? -value : value;
}

/* d[0..end) -= t * t; return whether that was possible. */
static int take_square(uint64_t *d, int end, const uint64_t *t, int n) {
  uint64_t borrow = 0;
  for (int i = 0; i < n; i++) {
    u128 carry = 0;
    for (int k = 0; k < n; k++) {
      carry += (u128)t[i] * t[k];
      uint64_t part = (uint64_t)carry;
      carry = (carry >> 64) + (d[i + k] < part);
      d[i + k] -= part;
    }
    u128 left = (u128)d[i + n] - (uint64_t)carry - borrow;
    d[i + n] = (uint64_t)left;
    borrow = (uint64_t)(left >> 64) & 1;
  }
  for (int i = 2 * n; borrow && i < end; i++) borrow = d[i]-- == 0;
  return borrow == 0;
}

/* variance = RN((n Q - S^2) / (n (n - 1))): 2 <= n < 2^32; a negative one means damaged input and gives -1. */
static double variance_of(const Sum *s, uint32_t n) {
  if (odd_value(s) != 0.0) return NAN;
  if (s->square_high <= s->square_low) return 0.0;
  Total t;
  uint64_t d[WORK_WORDS], carry = 0;
  total_of(s, &t);
  int used = t.sign ? t.high - t.low : 0, base = used && 2 * t.low < s->square_low ? 2 * t.low : s->square_low;
  int end = used && 2 * t.high > s->square_high ? 2 * t.high : s->square_high;
  int words = end - base + 1, from = 2 * t.low - base;
  memset(d, 0, (size_t)words * 8);
  for (int i = s->square_low; i < s->square_high; i++) {
    u128 p = (u128)s->square[i] * n + carry;
    d[i - base] = (uint64_t)p;
    carry = (uint64_t)(p >> 64);
  }
  d[s->square_high - base] = carry;
  if (used && !take_square(d + from, words - from, t.word + t.low, used)) return -1.0;
  return round_words(d, words, 64 * base - 2 * UNIT, n, n - 1);
}

/* Set the sum of an int64 column; return whether it fits. */
static int integer_sum(const Sum *s, int64_t *value) {
  Total t;
  total_of(s, &t);
  uint64_t size = t.sign && t.low == UNIT_WORD ? t.word[UNIT_WORD] : 0;
  if (t.high > UNIT_WORD + 1 || size > (uint64_t)INT64_MAX + (t.sign < 0)) return 0;
  *value = t.sign < 0 ? (int64_t)(0 - size) : (int64_t)size;
  return 1;
}

#endif
