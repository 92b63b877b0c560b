/* Sketches: estimates of how many values differ, and of quantiles, that depend on the set of values alone.
 *
 * HyperLogLog (Flajolet, Fusy, Gandouet, Meunier: "HyperLogLog", AofA 2007): the upper `bits` of a value's hash choose a
 * register, which holds the greatest position of the first one among the others. The estimate is the improved raw one
 * (Ertl, "New cardinality estimation algorithms for HyperLogLog sketches", arXiv:1702.01284, algorithms 4 to 6), whose
 * standard error is about 1.04 / sqrt(2^bits) for any number of values. The hash is SplitMix64 of the value's 64 bits
 * (Steele, Lea, Flood, OOPSLA 2014; the finalizer is Stafford's Mix13): a bijection, so no two values share one.
 *
 * DDSketch (Masson, Rim, Lee: "DDSketch", PVLDB 12(12), 2019): values are counted in buckets whose width is a share of
 * where they lie. Here buckets part each power of two evenly in 2^bits, as in the paper's variant that interpolates the
 * logarithm linearly: a bucket is the upper bits of a double, and its value, the middle, is within 2^-(bits + 1) of all
 * that it holds. No bucket is ever given up, so the k-th value's bucket is the bucket of the exact k-th value.
 *
 * Only integers, +, -, *, / and sqrt of IEEE doubles are used: the same bits on every machine.
 */
#ifndef HEADRACE_SKETCH_H
#define HEADRACE_SKETCH_H

#include "order.h"
#include <stdlib.h>

/* Turn 64 bits into others, one to one. */
static inline uint64_t mixed(uint64_t x) {
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  return x ^ x >> 31;
}

/* ==== How many differ ==== */

enum { POSITIONS = 64 };

typedef struct {
  int32_t bits;
  uint8_t *held;            /* of each register the greatest position, 0 for none */
  int64_t often[POSITIONS]; /* how many registers hold each */
} Registers;

static void registers_clear(Registers *r) {
  int64_t n = (int64_t)1 << r->bits;
  if (r->often[0] == n) return;
  memset(r->held, 0, (size_t)n);
  memset(r->often, 0, sizeof r->often);
  r->often[0] = n;
}

/* Return a value's register and position: register * POSITIONS + position. Zeros are equal, and so is every NaN. */
static inline int64_t position_of(int64_t word, int type, int bits) {
  if (type == FLOAT && (word & INT64_MAX) == 0) word = 0;
  if (type == FLOAT && (word & INT64_MAX) > INF_BITS) word = NAN_BITS;
  uint64_t hash = mixed((uint64_t)word + 0x9E3779B97F4A7C15u), rest = hash << bits;
  int64_t position = rest ? __builtin_clzll(rest) + 1 : POSITIONS - bits + 1;
  return (int64_t)(hash >> (POSITIONS - bits)) * POSITIONS + position;
}

static inline void register_set(Registers *r, int64_t place, int position) {
  r->often[r->held[place]]--;
  r->often[position]++;
  r->held[place] = (uint8_t)position;
}

static inline void registers_add(Registers *r, int64_t code) {
  if (code % POSITIONS > r->held[code / POSITIONS]) register_set(r, code / POSITIONS, (int)(code % POSITIONS));
}

/* x + sum over k >= 1 of x^(2^k) 2^(k - 1), for x below 1 */
static double sigma(double x) {
  double y = 1.0, z = x, before;
  do {
    x *= x;
    before = z;
    z += x * y;
    y += y;
  } while (z != before);
  return z;
}

/* (1 - x - sum over k >= 1 of (1 - x^(2^-k))^2 2^-k) / 3 */
static double tau(double x) {
  if (x == 0.0 || x == 1.0) return 0.0;
  double y = 1.0, z = 1.0 - x, before;
  do {
    x = sqrt(x);
    before = z;
    y *= 0.5;
    z -= (1.0 - x) * (1.0 - x) * y;
  } while (z != before);
  return z / 3.0;
}

/* Estimate how many values differ, of at least one. */
static int64_t registers_estimate(const Registers *r) {
  double m = (double)((int64_t)1 << r->bits);
  int most = POSITIONS - r->bits;
  double z = m * tau((m - (double)r->often[most + 1]) / m);
  for (int k = most; k >= 1; k--) z = 0.5 * (z + (double)r->often[k]);
  z += m * sigma((double)r->often[0] / m);
  return (int64_t)floor(0.7213475204444817 * m * m / z + 0.5); /* 1 / (2 ln 2) */
}

/* ==== Quantiles ==== */

/* Return the bucket of a value: its number ascends with the value, NaN last; 0 is the bucket of zero and of what is below
 * the least normal double. Integers beyond 2^53 keep their upper bits. */
static inline int64_t bucket_of(int64_t word, int type, int bits) {
  int64_t order = word;
  if (type == FLOAT) {
    order = ordered(word, FLOAT);
  } else if (word) {
    uint64_t size = word < 0 ? 0 - (uint64_t)word : (uint64_t)word;
    int over = 11 - __builtin_clzll(size);
    double value = (double)(over > 0 ? size >> over << over : size);
    memcpy(&order, &value, 8);
    if (word < 0) order = ~order;
  }
  int64_t bucket = order >> (52 - bits), none = (int64_t)1 << bits;
  return bucket >= -none && bucket < none ? 0 : bucket;
}

/* Return the bits of the double that stands for a bucket: its middle. */
static inline int64_t bucket_value(int64_t bucket, int bits) {
  if (bucket == 0) return 0;
  int64_t size = (bucket < 0 ? ~bucket : bucket) << (52 - bits);
  if (size >= INF_BITS) size = size > INF_BITS ? NAN_BITS : INF_BITS;
  else size |= (int64_t)1 << (51 - bits);
  return bucket < 0 ? size | INT64_MIN : size;
}

enum { PAGE = 64 };

/* Counts by bucket, in pages that come with their first value. */
typedef struct {
  int32_t bits, used, room;
  int32_t *slot;          /* of each page 1 + its place, 0 for none */
  uint64_t *there;        /* the pages that there are */
  int64_t *page, *held;   /* by place: which page it is, and how many values it holds */
  int64_t (*count)[PAGE]; /* by place */
} Buckets;

static int64_t pages_of(int bits) { return ((int64_t)4096 << bits) / PAGE; }

static void buckets_free(Buckets *b) {
  free(b->slot);
  free(b->there);
  free(b->page);
  free(b->held);
  free(b->count);
}

static int buckets_make(Buckets *b, int bits) {
  b->bits = bits;
  b->slot = calloc((size_t)pages_of(bits), sizeof *b->slot);
  b->there = calloc((size_t)(pages_of(bits) + 63) / 64, 8);
  return b->slot && b->there;
}

static void buckets_clear(Buckets *b) {
  for (int i = 0; i < b->used; i++) {
    b->slot[b->page[i]] = 0;
    b->there[b->page[i] >> 6] = 0;
  }
  b->used = 0;
}

static int more_pages(Buckets *b) {
  int32_t room = b->room ? 2 * b->room : 8;
  void *page = realloc(b->page, (size_t)room * 8);
  if (page) b->page = page;
  void *held = realloc(b->held, (size_t)room * 8);
  if (held) b->held = held;
  void *count = realloc(b->count, (size_t)room * sizeof *b->count);
  if (count) b->count = count;
  if (page && held && count) b->room = room;
  return page && held && count;
}

/* Count a value in; return 0 if memory is short. */
static int buckets_add(Buckets *b, int64_t bucket) {
  int64_t number = bucket + ((int64_t)2048 << b->bits), page = number / PAGE;
  if (b->slot[page] == 0) {
    if (b->used == b->room && !more_pages(b)) return 0;
    b->page[b->used] = page;
    b->held[b->used] = 0;
    memset(b->count[b->used], 0, sizeof *b->count);
    b->there[page >> 6] |= (uint64_t)1 << (page & 63);
    b->slot[page] = ++b->used;
  }
  int32_t place = b->slot[page] - 1;
  b->held[place]++;
  b->count[place][number % PAGE]++;
  return 1;
}

/* Return the bucket of the k-th smallest value of those counted; there are more than k. */
static int64_t buckets_select(const Buckets *b, int64_t k) {
  uint64_t word = b->there[0];
  for (int64_t at = 0;;) {
    while (word == 0) word = b->there[++at];
    int64_t page = at << 6 | __builtin_ctzll(word), i = 0;
    int32_t place = b->slot[page] - 1;
    word &= word - 1;
    if (k >= b->held[place]) k -= b->held[place];
    else {
      while (k >= b->count[place][i]) k -= b->count[place][i++];
      return page * PAGE + i - ((int64_t)2048 << b->bits);
    }
  }
}

#endif
