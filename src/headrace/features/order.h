/* Order: least and k-th values of a list, of a set that changes, of any part of a sequence that changes; sorting. */
#ifndef HEADRACE_ORDER_H
#define HEADRACE_ORDER_H

#include "exact.h"

static const int64_t INF_BITS = 0x7FF0000000000000, NAN_BITS = 0x7FF8000000000000;

/* Turn the bits of a double into an integer in the total order, -0.0 before +0.0, and such an integer back. */
static inline int64_t flipped(int64_t word) { return word ^ (int64_t)((uint64_t)(word >> 63) >> 1); }

/* Map a value to its integer in the total order; every NaN is one, and last. */
static inline int64_t ordered(int64_t word, int type) {
  if (type != FLOAT) return word;
  return (word & INT64_MAX) > INF_BITS ? NAN_BITS : flipped(word);
}

/* Return the k-th smallest; reorders v (Hoare's quickselect). */
static int64_t select_value(int64_t *v, int64_t n, int64_t k) {
  int64_t lo = 0, hi = n - 1;
  while (lo < hi) {
    int64_t pivot = v[lo + (hi - lo) / 2], i = lo, j = hi;
    while (i <= j) {
      while (v[i] < pivot) i++;
      while (v[j] > pivot) j--;
      if (i <= j) {
        int64_t x = v[i];
        v[i++] = v[j];
        v[j--] = x;
      }
    }
    if (k <= j) hi = j;
    else if (k >= i) lo = i;
    else break;
  }
  return v[k];
}

/* A set of places below n that finds its k-th: a bitmap, and a Fenwick tree over its words' populations. */
typedef struct {
  int64_t words, count;
  uint64_t *bit;
  int64_t *tree;
} Places;

static void places_change(Places *p, int64_t place, int by) {
  p->bit[place >> 6] ^= (uint64_t)1 << (place & 63);
  p->count += by;
  for (int64_t i = (place >> 6) + 1; i <= p->words; i += i & -i) p->tree[i] += by;
}

static int64_t places_select(const Places *p, int64_t k) {
  int64_t at = 0, step = 1;
  while (2 * step <= p->words) step *= 2;
  for (; step; step /= 2) {
    if (at + step <= p->words && p->tree[at + step] <= k) {
      at += step;
      k -= p->tree[at];
    }
  }
  uint64_t word = p->bit[at];
  while (k--) word &= word - 1;
  return at << 6 | __builtin_ctzll(word);
}

/* Return how many places of the set are below `place`. */
static int64_t places_below(const Places *p, int64_t place) {
  int64_t n = 0;
  for (int64_t i = place >> 6; i > 0; i -= i & -i) n += p->tree[i];
  if (place & 63) n += __builtin_popcountll(p->bit[place >> 6] & (((uint64_t)1 << (place & 63)) - 1));
  return n;
}

/* Sort integers in place (heapsort: no worst case, no memory). */
static void sift(int64_t *v, int64_t i, int64_t n) {
  int64_t x = v[i];
  for (int64_t k; (k = 2 * i + 1) < n; i = k) {
    if (k + 1 < n && v[k + 1] > v[k]) k++;
    if (v[k] <= x) break;
    v[i] = v[k];
  }
  v[i] = x;
}

static void sort_values(int64_t *v, int64_t n) {
  for (int64_t i = n / 2 - 1; i >= 0; i--) sift(v, i, n);
  for (int64_t i = n - 1; i > 0; i--) {
    int64_t x = v[0];
    v[0] = v[i];
    v[i] = x;
    sift(v, 0, i);
  }
}

/* The least of any range of values that change: each level holds the minima of 64 of the level below. */
enum { MAX_LEVELS = 11 };
typedef struct {
  int64_t size[MAX_LEVELS], *level[MAX_LEVELS];
} Minima;

static void minima_set(Minima *m, int64_t place, int64_t value) {
  int64_t old = m->level[0][place];
  m->level[0][place] = value;
  for (int i = 1; i < MAX_LEVELS && m->size[i]; i++) {
    int64_t *above = m->level[i] + (place >> 6), from = place & ~(int64_t)63, best = value;
    if (value > old) {
      if (*above < old) return;
      for (int64_t k = from; k < from + 64 && k < m->size[i - 1]; k++) {
        if (m->level[i - 1][k] < best) best = m->level[i - 1][k];
      }
    } else if (*above <= value) return;
    old = *above;
    *above = value = best;
    place >>= 6;
  }
}

static int64_t minima_over(const Minima *m, int64_t lo, int64_t hi, int64_t best) {
  for (int i = 0; lo < hi; i++, lo >>= 6, hi >>= 6) {
    const int64_t *v = m->level[i];
    for (; lo < hi && lo & 63; lo++) best = v[lo] < best ? v[lo] : best;
    for (; lo < hi && hi & 63; hi--) best = v[hi - 1] < best ? v[hi - 1] : best;
  }
  return best;
}

/* Return the first place that holds the least value. */
static int64_t minima_first(const Minima *m) {
  int top = 0;
  while (top + 1 < MAX_LEVELS && m->size[top + 1]) top++;
  int64_t place = 0, best = m->level[top][0];
  for (int i = top - 1; i >= 0; i--) {
    for (place <<= 6; m->level[i][place] != best;) place++;
  }
  return place;
}

/* Sort places by the `depth` words at key + place * stride: a stable merge sort of the runs that are there already, so
 * that nearly sorted input costs little. `spare` is as long as `place`. */
static inline int after(const int64_t *a, const int64_t *b, int depth) {
  for (int i = 0; i < depth; i++) {
    if (a[i] != b[i]) return a[i] > b[i];
  }
  return 0;
}

static int64_t run_end(const int64_t *key, int64_t stride, int depth, const int64_t *place, int64_t i, int64_t n) {
  while (i < n && !after(key + place[i - 1] * stride, key + place[i] * stride, depth)) i++;
  return i;
}

/* Merge the runs [a, b) and [b, end) of places into `to`. */
static void merge_runs(const int64_t *key, int64_t stride, int depth, const int64_t *place, int64_t *to, int64_t a,
                       int64_t b, int64_t end) {
  int64_t i = a, j = b;
  if (b < end && after(key + place[a] * stride, key + place[end - 1] * stride, depth)) {
    memcpy(to + a, place + b, (size_t)(end - b) * 8);
    memcpy(to + a + end - b, place + a, (size_t)(b - a) * 8);
    return;
  }
  for (int64_t k = a; k < end; k++) {
    int right = j < end && (i == b || after(key + place[i] * stride, key + place[j] * stride, depth));
    to[k] = place[right ? j++ : i++];
  }
}

static void sort_places(const int64_t *key, int64_t stride, int depth, int64_t *place, int64_t *spare, int64_t n) {
  for (int64_t runs = 2; runs > 1 && n > 1;) {
    runs = 0;
    for (int64_t a = 0, b, end; a < n; a = end, runs++) {
      b = run_end(key, stride, depth, place, a + 1, n);
      end = b < n ? run_end(key, stride, depth, place, b + 1, n) : n;
      merge_runs(key, stride, depth, place, spare, a, b, end);
    }
    memcpy(place, spare, (size_t)n * 8);
  }
}

#endif
