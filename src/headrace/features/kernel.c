/* Windowed aggregation: the only code for it, offline, online and streaming.
 *
 * Arithmetic is exact. A sum is kept as a fixed-point integer over the whole range of doubles, positive and negative
 * values apart, so that a carry never runs far and a value can be taken out again; squares likewise. Results are
 * rounded once, from integers. Nothing depends on the order of additions, on the CPU or on compiler flags.
 *
 * An event is ROW = 4 + m words: moment, arrival, row hash, null mask (bit i: value i is null), m values. Events stand in
 * order of (moment, arrival, row hash). A head is HEAD words and then the events.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>

typedef unsigned __int128 u128;

enum { HEAD = 4, FIXED = 4, MAX_COLUMNS = 64, MAX_WINDOWS = 32 };
enum { FLOAT = 0, INT = 1, BOOL = 2, REF = 3 };
enum { COUNT = 0, SUM = 1, MEAN = 2, MIN = 3, MAX = 4, STDDEV = 5, LATEST = 6, QUANTILE = 7, ROWS = 8 };
enum { OK = 0, NONE = 1, EXPIRED = 2, OVERFLOWED = 3 };
enum { CORRUPT = -1 };

/* Doubles are multiples of 2^-1074 below 2^1024: 2,098 bits, and 32 more for 2^32 summands: 34 words. Squares are
 * multiples of 2^-2148 below 2^2048: 4,196 + 32 bits: 67 words; one more each, so that a shifted value fits. */
enum { S_WORDS = 35, Q_WORDS = 69, S_BASE = -1074, Q_BASE = -2148 };

typedef struct {
  int64_t n, plus_inf, minus_inf, nans;
  uint64_t plus[S_WORDS], minus[S_WORDS], square[Q_WORDS];
  int low, high; /* words of `plus` and `minus` that may not be zero; `square` has twice as many */
} Sum;

typedef struct { int32_t column, kind, window, pad; double parameter; } Output;

typedef struct {
  int32_t columns, windows, outputs, state;
  int32_t types[MAX_COLUMNS];
  int32_t sums[MAX_COLUMNS];   /* 0: no sum of the column is asked for; 1: its sum; 2: its squares too */
  int32_t ranges[MAX_COLUMNS]; /* whether its least or greatest value is asked for */
  int32_t lists[MAX_COLUMNS];  /* whether a quantile of it is asked for */
  int32_t newest[MAX_COLUMNS]; /* whether its latest value is asked for */
  int64_t window[MAX_WINDOWS];
  Output output[256];
} Lane;

/* ---- exact sums ---- */

static void sum_clear(Sum *s) {
  s->n = s->plus_inf = s->minus_inf = s->nans = 0;
  if (s->high >= s->low) {
    size_t words = (size_t)(s->high - s->low + 1);
    memset(s->plus + s->low, 0, words * 8);
    memset(s->minus + s->low, 0, words * 8);
    int top = 2 * s->high + 3;
    if (top > Q_WORDS) top = Q_WORDS;
    memset(s->square + 2 * s->low, 0, (size_t)(top - 2 * s->low) * 8);
  }
  s->low = S_WORDS;
  s->high = -1;
}

static int add_at(uint64_t *d, int i, uint64_t a, uint64_t b, uint64_t c) {
  u128 t = (u128)d[i] + a;
  d[i++] = (uint64_t)t;
  t = (u128)d[i] + b + (uint64_t)(t >> 64);
  d[i++] = (uint64_t)t;
  t = (u128)d[i] + c + (uint64_t)(t >> 64);
  d[i] = (uint64_t)t;
  uint64_t carry = (uint64_t)(t >> 64);
  while (carry) carry = (d[++i] += 1) == 0;
  return i;
}

static void take_at(uint64_t *d, int i, uint64_t a, uint64_t b, uint64_t c) {
  uint64_t part[3] = {a, b, c}, borrow = 0;
  for (int k = 0; k < 3; k++, i++) {
    u128 less = (u128)part[k] + borrow;
    borrow = less > d[i];
    d[i] -= (uint64_t)less;
  }
  for (; borrow; i++) borrow = d[i]-- == 0;
}

/* Split a value into sign, an integer below 2^64 and its exponent above 2^S_BASE; 0 if it is zero, -1 if not finite. */
static int split(int64_t word, int type, int *negative, uint64_t *digits, int *place) {
  if (type != FLOAT) {
    *negative = word < 0;
    *digits = word < 0 ? 0 - (uint64_t)word : (uint64_t)word;
    *place = -S_BASE;
    return word != 0;
  }
  uint64_t bits = (uint64_t)word;
  int e = (int)(bits >> 52) & 2047;
  if (e == 2047) return -1;
  *negative = (int)(bits >> 63);
  *digits = (bits & 0xFFFFFFFFFFFFFull) | ((uint64_t)(e != 0) << 52);
  *place = e ? e - 1 : 0;
  return *digits != 0;
}

static void sum_change(Sum *s, int64_t word, int type, int squares, int sign) {
  int negative, place, found;
  uint64_t digits;
  s->n += sign;
  found = split(word, type, &negative, &digits, &place);
  if (found == 0) return;
  if (found < 0) {
    if ((uint64_t)word << 12) s->nans += sign;
    else if (word < 0) s->minus_inf += sign;
    else s->plus_inf += sign;
    return;
  }
  int i = place >> 6, b = place & 63;
  uint64_t low = digits << b, high = b ? digits >> (64 - b) : 0;
  uint64_t *d = negative ? s->minus : s->plus;
  int end = i + 2;
  if (sign > 0) end = add_at(d, i, low, high, 0);
  else take_at(d, i, low, high, 0);
  if (i < s->low) s->low = i;
  if (end > s->high) s->high = end;
  if (squares) {
    u128 q = (u128)digits * digits;
    int j = 2 * place >> 6, c = 2 * place & 63;
    uint64_t l = (uint64_t)q, h = (uint64_t)(q >> 64);
    uint64_t x = l << c, y = c ? h << c | l >> (64 - c) : h, z = c ? h >> (64 - c) : 0;
    if (sign > 0) {
      int top = add_at(s->square, j, x, y, z);
      if ((top + 1) / 2 > s->high) s->high = (top + 1) / 2;
    } else take_at(s->square, j, x, y, z);
  }
  if (s->high >= S_WORDS) s->high = S_WORDS - 1;
}

/* ---- big integers: little-endian words, non-negative ---- */

enum { BIG = 144 };
typedef struct { int n; uint64_t w[BIG]; } Big;

static void big_trim(Big *a) { while (a->n && !a->w[a->n - 1]) a->n--; }

static int big_compare(const Big *a, const Big *b) {
  if (a->n != b->n) return a->n < b->n ? -1 : 1;
  for (int i = a->n; i--;) if (a->w[i] != b->w[i]) return a->w[i] < b->w[i] ? -1 : 1;
  return 0;
}

static void big_subtract(Big *a, const Big *b) { /* a >= b */
  uint64_t borrow = 0;
  for (int i = 0; i < a->n; i++) {
    u128 less = (u128)(i < b->n ? b->w[i] : 0) + borrow;
    borrow = less > a->w[i];
    a->w[i] -= (uint64_t)less;
  }
  big_trim(a);
}

static void big_times(Big *a, uint64_t factor) {
  u128 t = 0;
  for (int i = 0; i < a->n; i++) {
    t += (u128)a->w[i] * factor;
    a->w[i] = (uint64_t)t;
    t >>= 64;
  }
  if (t) a->w[a->n++] = (uint64_t)t;
}

static void big_square(const Big *a, Big *r) {
  memset(r->w, 0, (size_t)(2 * a->n) * 8);
  for (int i = 0; i < a->n; i++) {
    u128 t = 0;
    for (int j = 0; j < a->n; j++) {
      t += (u128)a->w[i] * a->w[j] + r->w[i + j];
      r->w[i + j] = (uint64_t)t;
      t >>= 64;
    }
    r->w[i + a->n] = (uint64_t)t;
  }
  r->n = 2 * a->n;
  big_trim(r);
}

/* Round a * 2^exponent / divisor to the nearest double, ties to even. */
static double big_round(Big *a, int exponent, uint64_t divisor) {
  big_trim(a);
  if (!a->n) return 0.0;
  uint64_t rest = 0;
  if (divisor > 1) { /* two more words below give the quotient at least 64 bits and an exact remainder */
    memmove(a->w + 2, a->w, (size_t)a->n * 8);
    a->w[0] = a->w[1] = 0;
    a->n += 2;
    exponent -= 128;
    for (int i = a->n; i--;) {
      u128 t = (u128)rest << 64 | a->w[i];
      a->w[i] = (uint64_t)(t / divisor);
      rest = (uint64_t)(t % divisor);
    }
    big_trim(a);
  }
  int top = 64 * a->n - 1 - __builtin_clzll(a->w[a->n - 1]), e = top + exponent;
  if (e > 1023) return INFINITY;
  int keep = e >= -1022 ? 53 : 53 + 1022 + e;
  if (keep < 0) return 0.0;
  int cut = top + 1 - keep; /* bits below `cut` are rounded away */
  uint64_t kept = 0, half = 0;
  for (int i = 0; i < keep; i++) {
    int p = top - i;
    kept = kept << 1 | (p >= 0 ? a->w[p >> 6] >> (p & 63) & 1 : 0);
  }
  if (cut > 0) {
    int p = cut - 1;
    half = a->w[p >> 6] >> (p & 63) & 1;
    if (half && !rest) {
      rest = p & 63 ? a->w[p >> 6] << (64 - (p & 63)) : 0;
      for (int i = p >> 6; !rest && i--;) rest = a->w[i];
    }
  }
  if (half && (rest || (kept & 1))) kept++;
  uint64_t bits = keep == 53 ? ((uint64_t)(e + 1022) << 52) + kept : kept;
  double found;
  memcpy(&found, &bits, 8);
  return found;
}

/* ---- results ---- */

/* Return |S| and its sign; words below `low` are left out, so its exponent is S_BASE + 64 * low. */
static int sum_total(const Sum *s, Big *total) {
  Big minus;
  int n = s->high - s->low + 1;
  if (n <= 0) { total->n = 0; return 0; }
  total->n = minus.n = n;
  memcpy(total->w, s->plus + s->low, (size_t)n * 8);
  memcpy(minus.w, s->minus + s->low, (size_t)n * 8);
  big_trim(total);
  big_trim(&minus);
  int order = big_compare(total, &minus);
  if (order >= 0) big_subtract(total, &minus);
  else { big_subtract(&minus, total); *total = minus; }
  return order;
}

static double special(const Sum *s, int *found) {
  *found = 1;
  if (s->nans || (s->plus_inf && s->minus_inf)) return NAN;
  if (s->plus_inf) return INFINITY;
  if (s->minus_inf) return -INFINITY;
  *found = 0;
  return 0.0;
}

static double sum_mean(const Sum *s, uint64_t divisor) {
  int odd;
  double value = special(s, &odd);
  if (odd) return value;
  Big total;
  int sign = sum_total(s, &total);
  value = big_round(&total, S_BASE + 64 * s->low, divisor);
  return sign < 0 ? -value : value;
}

static double sum_variance(const Sum *s) { /* (n Q - S^2) / (n (n - 1)), rounded once */
  int odd;
  special(s, &odd);
  if (odd) return NAN;
  int n = s->high - s->low + 1;
  if (n <= 0) return 0.0;
  Big total, square, q;
  sum_total(s, &total);
  big_square(&total, &square);
  int words = 2 * n + 2;
  if (2 * s->low + words > Q_WORDS) words = Q_WORDS - 2 * s->low;
  q.n = words;
  memcpy(q.w, s->square + 2 * s->low, (size_t)words * 8);
  big_trim(&q);
  big_times(&q, (uint64_t)s->n);
  big_subtract(&q, &square);
  return big_round(&q, Q_BASE + 128 * s->low, (uint64_t)s->n * (uint64_t)(s->n - 1));
}

static int integer_total(const Sum *s, int64_t *value) {
  Big total;
  int sign = sum_total(s, &total);
  uint64_t found = 0;
  int places = -S_BASE - 64 * s->low;
  for (int i = 0; i < total.n; i++) { /* the integer is a multiple of 2^1074 / 2^(64 low) here */
    int p = 64 * i - places;
    if (p <= -64 || !total.w[i]) continue;
    if (p >= 64) return OVERFLOWED;
    if (p < 0) found |= total.w[i] >> -p;
    else {
      if (p && total.w[i] >> (64 - p)) return OVERFLOWED;
      found |= total.w[i] << p;
    }
  }
  if (found > (uint64_t)INT64_MAX + (sign < 0)) return OVERFLOWED;
  *value = sign < 0 ? (int64_t)(0 - found) : (int64_t)found;
  return OK;
}

/* ---- order ---- */

/* Map a value to an integer in the total order: -0.0 < +0.0, NaN last. */
static int64_t ordered(int64_t word, int type) {
  if (type != FLOAT) return word;
  return word ^ ((word >> 63) & INT64_MAX);
}

static int64_t select_nth(int64_t *v, int64_t n, int64_t r) {
  int64_t lo = 0, hi = n - 1;
  while (lo < hi) {
    int64_t p = v[lo + (hi - lo) / 2], i = lo, j = hi;
    while (i <= j) {
      while (v[i] < p) i++;
      while (v[j] > p) j--;
      if (i <= j) { int64_t x = v[i]; v[i++] = v[j]; v[j--] = x; }
    }
    if (r <= j) hi = j;
    else if (r >= i) lo = i;
    else break;
  }
  return v[r];
}

static int64_t quantile_rank(double q, int64_t n) { /* inverse CDF: from 0 */
  int64_t rank = (int64_t)ceil(q * (double)n) - 1;
  return rank < 0 ? 0 : rank >= n ? n - 1 : rank;
}

/* ---- one read: events go in from the newest to the oldest, a window is finished when its edge is passed ---- */

typedef struct {
  Lane lane;
  Sum sum[MAX_COLUMNS];
  int64_t rows, count[MAX_COLUMNS], least[MAX_COLUMNS], greatest[MAX_COLUMNS];
  int64_t last[MAX_COLUMNS], last_moment[MAX_COLUMNS];
  uint8_t seen[MAX_COLUMNS], last_null[MAX_COLUMNS];
  int64_t *list[MAX_COLUMNS], *scratch, room;
} Reader;

Reader *reader_new(const Lane *lane) {
  Reader *r = calloc(1, sizeof *r);
  if (!r) return NULL;
  r->lane = *lane;
  for (int c = 0; c < lane->columns; c++) { r->sum[c].low = 0; r->sum[c].high = S_WORDS - 1; sum_clear(&r->sum[c]); }
  return r;
}

void reader_free(Reader *r) {
  for (int c = 0; c < MAX_COLUMNS; c++) free(r->list[c]);
  free(r->scratch);
  free(r);
}

static int reader_room(Reader *r, int64_t n) {
  if (n <= r->room) return 1;
  for (int c = 0; c < r->lane.columns; c++) if (r->lane.lists[c]) {
    int64_t *larger = realloc(r->list[c], (size_t)n * 8);
    if (!larger) return 0;
    r->list[c] = larger;
  }
  int64_t *larger = realloc(r->scratch, (size_t)n * 8);
  if (!larger) return 0;
  r->scratch = larger;
  r->room = n;
  return 1;
}

static void reader_clear(Reader *r) {
  r->rows = 0;
  for (int c = 0; c < r->lane.columns; c++) {
    r->count[c] = 0;
    r->seen[c] = 0;
    if (r->lane.sums[c]) sum_clear(&r->sum[c]);
  }
}

static void put_double(int64_t *word, double value) { memcpy(word, &value, 8); }

static void blank(const Lane *lane, const Output *o, int64_t *word) {
  int type = o->column < 0 ? INT : lane->types[o->column];
  if (o->kind == MEAN || o->kind == STDDEV || (type == FLOAT && o->kind != COUNT)) put_double(word, NAN);
  else *word = 0;
}

static int from_sum(const Sum *s, int kind, int type, int64_t *word) {
  if (kind == SUM && type != FLOAT) return integer_total(s, word);
  if (kind == STDDEV && s->n < 2) return NONE;
  put_double(word, kind == SUM ? sum_mean(s, 1) : kind == MEAN ? sum_mean(s, (uint64_t)s->n) : sqrt(sum_variance(s)));
  return OK;
}

static int result(Reader *r, const Output *o, int64_t t, int64_t *word) {
  int c = o->column;
  if (o->kind == ROWS) { *word = r->rows; return OK; }
  if (o->kind == COUNT) { *word = r->count[c]; return OK; }
  int type = r->lane.types[c];
  if (o->kind == LATEST) {
    if (!r->seen[c]) return NONE;
    if (o->parameter >= 0 && (double)(t - r->last_moment[c]) > o->parameter) return EXPIRED;
    if (r->last_null[c]) return NONE;
    *word = r->last[c];
    return OK;
  }
  if (!r->count[c]) return NONE;
  if (o->kind == MIN) { *word = ordered(r->least[c], type); return OK; }
  if (o->kind == MAX) { *word = ordered(r->greatest[c], type); return OK; }
  if (o->kind == QUANTILE) {
    int64_t n = r->count[c];
    memcpy(r->scratch, r->list[c], (size_t)n * 8);
    *word = ordered(select_nth(r->scratch, n, quantile_rank(o->parameter, n)), type);
    return OK;
  }
  return from_sum(&r->sum[c], o->kind, type, word);
}

static void finish(Reader *r, int window, int64_t t, int64_t *words, uint8_t *status) {
  for (int i = 0; i < r->lane.outputs; i++) {
    const Output *o = &r->lane.output[i];
    if (o->window != window) continue;
    status[i] = (uint8_t)result(r, o, t, words + i);
    if (status[i] != OK) blank(&r->lane, o, words + i);
  }
}

/* Finish what does not need the order of values. */
static void finish_sums(Reader *r, int window, int64_t t, int64_t *words, uint8_t *status) {
  for (int i = 0; i < r->lane.outputs; i++) {
    const Output *o = &r->lane.output[i];
    if (o->window != window || o->kind == MIN || o->kind == MAX || o->kind == QUANTILE) continue;
    status[i] = (uint8_t)result(r, o, t, words + i);
    if (status[i] != OK) blank(&r->lane, o, words + i);
  }
}

static void take_event(Reader *r, int64_t moment, int64_t mask, const int64_t *v, int windowed) {
  r->rows += windowed;
  for (int c = 0; c < r->lane.columns; c++) {
    int null = (int)(mask >> c & 1);
    if (!r->seen[c] && (!null || r->lane.state)) {
      r->seen[c] = 1;
      r->last_null[c] = (uint8_t)null;
      r->last[c] = v[c];
      r->last_moment[c] = moment;
    }
    if (null || !windowed) continue;
    if (r->lane.ranges[c]) {
      int64_t k = ordered(v[c], r->lane.types[c]);
      if (!r->count[c] || k < r->least[c]) r->least[c] = k;
      if (!r->count[c] || k > r->greatest[c]) r->greatest[c] = k;
    }
    if (r->lane.lists[c]) r->list[c][r->count[c]] = ordered(v[c], r->lane.types[c]);
    if (r->lane.sums[c]) sum_change(&r->sum[c], v[c], r->lane.types[c], r->lane.sums[c] > 1, 1);
    r->count[c]++;
  }
}

static int all_seen(const Reader *r) {
  for (int c = 0; c < r->lane.columns; c++) if (r->lane.newest[c] && !r->seen[c]) return 0;
  return 1;
}

/* Events 0..n-1 stand `stride` words apart at `at`; arrivals and untils are looked at if `until` is given. */
static void scan_one(Reader *r, const int64_t *at, int64_t n, int64_t stride, const int64_t *until, int64_t t,
                     int64_t *words, uint8_t *status) {
  const Lane *lane = &r->lane;
  int64_t edge = lane->state ? t + 1 : t, lo = 0, hi = n;
  reader_clear(r);
  while (lo < hi) {
    int64_t mid = lo + (hi - lo) / 2;
    if (at[mid * stride] < edge) lo = mid + 1;
    else hi = mid;
  }
  int window = 0;
  for (int64_t i = lo; i--;) {
    const int64_t *e = at + i * stride;
    while (window < lane->windows && e[0] < edge - lane->window[window]) finish(r, window++, t, words, status);
    int windowed = window < lane->windows;
    if (!windowed && all_seen(r)) break;
    if (until && (e[1] > t || until[i] <= t)) continue;
    take_event(r, e[0], e[3], e + FIXED, windowed);
  }
  while (window < lane->windows) finish(r, window++, t, words, status);
  finish(r, -1, t, words, status);
}

/* ---- online ---- */

int read_head(Reader *r, const int64_t *head, int64_t bytes, int64_t t, int64_t *words, uint8_t *status) {
  int64_t stride = FIXED + r->lane.columns, n = 0;
  if (head) {
    if (bytes < HEAD * 8 || (bytes - HEAD * 8) % (stride * 8) || head[0] != stride) return CORRUPT;
    n = (bytes / 8 - HEAD) / stride;
  }
  if (!reader_room(r, n + 1)) return -2;
  scan_one(r, head + HEAD, n, stride, NULL, t, words, status);
  return head != NULL;
}

static int compare3(const int64_t *a, const int64_t *b) {
  for (int i = 0; i < 3; i++) if (a[i] != b[i]) return a[i] < b[i] ? -1 : 1;
  return 0;
}

static int64_t locate(const int64_t *at, int64_t n, int64_t stride, const int64_t *key) {
  int64_t lo = 0, hi = n;
  while (lo < hi) {
    int64_t mid = lo + (hi - lo) / 2;
    if (compare3(at + mid * stride, key) < 0) lo = mid + 1;
    else hi = mid;
  }
  return lo;
}

/* Write a changed head into `out` (room for one more event); return its bytes. */
int64_t change_head(const int64_t *head, int64_t bytes, int64_t columns, int64_t keep, int64_t spare, const int64_t *add,
                    const int64_t *drop, int64_t *out) {
  int64_t stride = FIXED + columns, n = 0;
  if (head) {
    if (bytes < HEAD * 8 || (bytes - HEAD * 8) % (stride * 8) || head[0] != stride) return CORRUPT;
    n = (bytes / 8 - HEAD) / stride;
    memcpy(out, head, (size_t)bytes);
  } else { out[0] = stride; out[1] = INT64_MIN; out[2] = INT64_MIN; out[3] = 0; }
  int64_t *at = out + HEAD;
  out[3]++;
  if (drop) {
    int64_t i = locate(at, n, stride, drop);
    if (i < n && !compare3(at + i * stride, drop)) {
      memmove(at + i * stride, at + (i + 1) * stride, (size_t)((n - i - 1) * stride) * 8);
      n--;
    }
  }
  if (add) {
    if (add[1] > out[1]) out[1] = add[1];
    if (add[0] >= out[2]) {
      int64_t i = locate(at, n, stride, add), same = i < n && !compare3(at + i * stride, add);
      if (!same) { memmove(at + (i + 1) * stride, at + i * stride, (size_t)((n - i) * stride) * 8); n++; }
      memcpy(at + i * stride, add, (size_t)stride * 8);
    }
  }
  int64_t below = out[1] - keep, gone = 0;
  while (n - gone > spare && at[gone * stride] < below) gone++;
  if (gone >= 32 || (gone && gone == n)) { /* in lots, so that most appends move nothing */
    out[2] = at[(gone - 1) * stride] + 1;
    memmove(at, at + gone * stride, (size_t)((n - gone) * stride) * 8);
    n -= gone;
  }
  return (HEAD + n * stride) * 8;
}

/* ---- offline: events sorted by (key, moment, arrival, row), queries by (key, t) ---- */

typedef struct { int64_t at, place; } Turn;

static int by_turn(const void *a, const void *b) {
  int64_t x = ((const Turn *)a)->at, y = ((const Turn *)b)->at;
  return x < y ? -1 : x > y;
}

static int by_value(const void *a, const void *b) {
  int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return x < y ? -1 : x > y;
}

/* A multiset of the key's values that knows its k-th smallest: a Fenwick tree of counts over the values' ranks
 * (Fenwick, Software: Practice and Experience 24(3), 1994). Least, greatest and quantiles are all k-th values. */
typedef struct { int64_t *values, *tree, size, bits; } Ranks;

static void ranks_change(Ranks *k, int64_t value, int64_t by) {
  int64_t lo = 0, hi = k->size;
  while (lo < hi) {
    int64_t mid = lo + (hi - lo) / 2;
    if (k->values[mid] < value) lo = mid + 1;
    else hi = mid;
  }
  for (int64_t i = lo + 1; i <= k->size; i += i & -i) k->tree[i] += by;
}

static int64_t ranks_nth(const Ranks *k, int64_t n) { /* n counts from 1 */
  int64_t at = 0;
  for (int64_t step = k->bits; step; step >>= 1)
    if (at + step <= k->size && k->tree[at + step] < n) n -= k->tree[at += step];
  return k->values[at];
}

static int ranks_build(Ranks *k, const int64_t *at, int64_t n, int64_t stride, int column, int type) {
  k->values = malloc((size_t)(n + 1) * 8);
  k->tree = calloc((size_t)n + 2, 8);
  if (!k->values || !k->tree) return 0;
  int64_t used = 0;
  for (int64_t i = 0; i < n; i++)
    if (!(at[i * stride + 3] >> column & 1)) k->values[used++] = ordered(at[i * stride + FIXED + column], type);
  qsort(k->values, (size_t)used, 8, by_value);
  k->size = 0;
  for (int64_t i = 0; i < used; i++) if (!k->size || k->values[k->size - 1] != k->values[i]) k->values[k->size++] = k->values[i];
  for (k->bits = 1; k->bits * 2 <= k->size; k->bits *= 2) {}
  return 1;
}

static void ranks_free(Ranks *k) {
  free(k->values);
  free(k->tree);
  k->values = k->tree = NULL;
}

/* Finish the outputs of a window that are k-th values; the others were finished from the sums. */
static void finish_ranks(Reader *r, Ranks *ranks, int window, int64_t *words, uint8_t *status) {
  for (int i = 0; i < r->lane.outputs; i++) {
    const Output *o = &r->lane.output[i];
    if (o->window != window || (o->kind != MIN && o->kind != MAX && o->kind != QUANTILE)) continue;
    int64_t n = r->count[o->column];
    if (!n) { status[i] = NONE; blank(&r->lane, o, words + i); continue; }
    int64_t nth = o->kind == MIN ? 1 : o->kind == MAX ? n : quantile_rank(o->parameter, n) + 1;
    words[i] = ordered(ranks_nth(&ranks[o->column], nth), r->lane.types[o->column]);
    status[i] = OK;
  }
}

/* Slide one window over the queries of one key: every event goes in when it becomes visible and is taken out again. */
static void slide(Reader *r, const int64_t *at, const int64_t *until, int64_t n, const int64_t *t, int64_t queries,
                  int window, Turn *enter, Turn *leave, Ranks *ranks, int64_t *words, uint8_t *status) {
  const Lane *lane = &r->lane;
  int64_t stride = FIXED + lane->columns, extra = lane->state ? 0 : 1, used = 0;
  for (int64_t i = 0; i < n; i++) {
    const int64_t *e = at + i * stride;
    int64_t from = e[0] + extra > e[1] ? e[0] + extra : e[1], to = e[0] + extra + lane->window[window];
    if (until[i] < to) to = until[i];
    if (from >= to) continue;
    enter[used] = (Turn){from, i};
    leave[used++] = (Turn){to, i};
  }
  qsort(enter, (size_t)used, sizeof *enter, by_turn);
  qsort(leave, (size_t)used, sizeof *leave, by_turn);
  reader_clear(r);
  int64_t in = 0, out = 0;
  for (int64_t q = 0; q < queries; q++) {
    for (int side = 1; side >= -1; side -= 2) {
      Turn *turn = side > 0 ? enter : leave;
      int64_t *next = side > 0 ? &in : &out;
      for (; *next < used && turn[*next].at <= t[q]; ++*next) {
        const int64_t *e = at + turn[*next].place * stride;
        r->rows += side;
        for (int c = 0; c < lane->columns; c++) if (!(e[3] >> c & 1)) {
          r->count[c] += side;
          if (lane->sums[c]) sum_change(&r->sum[c], e[FIXED + c], lane->types[c], lane->sums[c] > 1, side);
          if (ranks[c].values) ranks_change(&ranks[c], ordered(e[FIXED + c], lane->types[c]), side);
        }
      }
    }
    finish_sums(r, window, t[q], words + q * lane->outputs, status + q * lane->outputs);
    finish_ranks(r, ranks, window, words + q * lane->outputs, status + q * lane->outputs);
  }
  for (; out < used; out++) { /* leave the trees empty for the next window */
    const int64_t *e = at + leave[out].place * stride;
    int entered = (e[0] + extra > e[1] ? e[0] + extra : e[1]) <= (queries ? t[queries - 1] : INT64_MIN);
    for (int c = 0; entered && c < lane->columns; c++)
      if (ranks[c].values && !(e[3] >> c & 1)) ranks_change(&ranks[c], ordered(e[FIXED + c], lane->types[c]), -1);
  }
}

static int slides(const Lane *lane) {
  for (int i = 0; i < lane->outputs; i++) if (lane->output[i].kind == LATEST) return 0;
  return 1;
}

static int slide_key(Reader *r, const int64_t *at, const int64_t *until, int64_t n, const int64_t *t, int64_t queries,
                     Turn *enter, Turn *leave, int64_t *words, uint8_t *status) {
  const Lane *lane = &r->lane;
  Ranks ranks[MAX_COLUMNS];
  int done = 1;
  memset(ranks, 0, sizeof ranks);
  for (int c = 0; c < lane->columns && done; c++) if (lane->ranges[c] || lane->lists[c])
    done = ranks_build(&ranks[c], at, n, FIXED + lane->columns, c, lane->types[c]);
  for (int w = 0; w < lane->windows && done; w++)
    slide(r, at, until, n, t, queries, w, enter, leave, ranks, words, status);
  for (int c = 0; c < lane->columns; c++) ranks_free(&ranks[c]);
  return done;
}

int scan_sorted(Reader *r, const int64_t *key, const int64_t *at, const int64_t *until, int64_t n, const int64_t *query_key,
                const int64_t *t, int64_t queries, int64_t *words, uint8_t *status) {
  const Lane *lane = &r->lane;
  int64_t stride = FIXED + lane->columns, from = 0, longest = 0;
  for (int64_t i = 0, j; i < n; i = j) {
    for (j = i; j < n && key[j] == key[i]; j++) {}
    if (j - i > longest) longest = j - i;
  }
  Turn *enter = malloc((size_t)(longest + 1) * sizeof *enter), *leave = malloc((size_t)(longest + 1) * sizeof *leave);
  int done = enter && leave && reader_room(r, longest + 1);
  for (int64_t q = 0, p; done && q < queries; q = p) {
    for (p = q; p < queries && query_key[p] == query_key[q]; p++) {}
    while (from < n && key[from] < query_key[q]) from++;
    int64_t to = from;
    while (to < n && key[to] == query_key[q]) to++;
    const int64_t *events = at + from * stride;
    if (slides(lane) && p - q > 1)
      done = slide_key(r, events, until + from, to - from, t + q, p - q, enter, leave, words + q * lane->outputs,
                       status + q * lane->outputs);
    else
      for (int64_t k = q; k < p; k++)
        scan_one(r, events, to - from, stride, until + from, t[k], words + k * lane->outputs, status + k * lane->outputs);
    from = to;
  }
  free(enter);
  free(leave);
  return done ? 0 : -2;
}

int64_t lane_bytes(void) { return (int64_t)sizeof(Lane); }
