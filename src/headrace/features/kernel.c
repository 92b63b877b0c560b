/* Windowed aggregation: the only code for it, offline, online and streaming.
 *
 * All sums are exact integers that are rounded once, at the end, so neither the order of events nor blocks, partitions,
 * the CPU or the compiler can change a bit of a result (`exact.h`), nor of an estimate (`sketch.h`). Sections: one lane's
 * tally, reading events newest first, summaries of blocks, scanning many labels.
 *
 * Stored words are little-endian int64, as is every machine this is built for; `lanes.py` describes their layout. An
 * event is EVENT + m words: moment, arrival, row hash, null mask (bit i: value i is null), m values (float64 bits or
 * int64). Events stand in the order (moment, arrival, row hash).
 */
#define _DEFAULT_SOURCE /* madvise */
#include "blake2b.h"
#include "exact.h"
#include "order.h"
#include "sketch.h"
#include "spell.h"
#include <stdlib.h>
#include <sys/mman.h>

enum { COUNT = 0, SUM = 1, MEAN = 2, LEAST = 3, GREATEST = 4, STDDEV = 5, LATEST = 6, QUANTILE = 7, ROWS = 8,
       DISTINCT = 9, MODE = 10, LAST = 11, FIRST = 12, FOLD = 13, APPROX_DISTINCT = 14, APPROX_QUANTILE = 15 };
enum { OK = 0, NONE = 1, EXPIRED = 2, OVERFLOWED = 3, STALE = 6 };
enum { CORRUPT = -1, NO_MEMORY = -2, ENOUGH = -3 };
enum { AUTO = 0, PLAIN = 1, SWEEP = 2 };

enum { MOMENT = 0, ARRIVAL = 1, ROW = 2, MASK = 3, EVENT = 4 };
/* An entry summarizes a block: ENTRY words and PART words for each column. */
enum { BEGIN = 0, END = 1, REFERENCE = 4, ENTRY_ROWS = 5, ENTRY = 6 };
enum { P_COUNT = 0, P_LEAST = 1, P_GREATEST = 2, P_LAST = 3, P_LAST_MOMENT = 4, P_MARKS = 5, P_SUM = 6, P_SQUARE = 9,
       PART = 14, SUM_PART = 3, SQUARE_PART = 5 };
enum { SEEN = 1, LAST_NULL = 2, PLUS_INF = 4, MINUS_INF = 8, NANS = 16, NEGATIVE = 32, WIDE = 64 };
enum { HEAD = 5, HEAD_FLOOR = 3, REBUILD = 1, FORMAT = 1, ANY_LEVEL = 255, MAX_DEPTH = 16 };
enum { BLOCK = 1024 }; /* events or values that are picked out before they are worked on */
_Static_assert((int)BLOCK <= (int)BIN_ROOM, "a block of values fits into bins");

#define MAX_COUNT ((int64_t)1 << 32)
#define GATHERED ((int64_t)1 << 24) /* words of the rows that are gathered at a time, unless one key has more */

static int64_t minus(int64_t a, int64_t b) {
  int64_t r;
  if (__builtin_sub_overflow(a, b, &r)) return b > 0 ? INT64_MIN : INT64_MAX;
  return r;
}

/* ==== One lane's tally ==== */

typedef struct {
  int32_t column, kind, window; /* window: its place, -1 for none */
  int32_t place;                /* where the result is written */
  int32_t until;                /* the column that says until when a latest value holds, -1 for none */
  int32_t bits, sketch;         /* of an estimate: how fine it is, and its sketch's number, which the lane gives */
  double share;                 /* of a quantile */
  int64_t age;                  /* the greatest of a latest value; k of the k-th last or first */
} Output;

/* Say how windows lie. They are [t' - window, t' - shift) with t' the moment, or the civil time, of a question; with
 * `hop` their begin is floored to a multiple of it. `known` is the column that says when an event's values are known,
 * -1 if that is where it stands; such events may stand in the future. */
typedef struct {
  int64_t shift, hop;
  int32_t state, known;
} Frames;

typedef struct {
  int32_t type, sums, ranges, lists, newest; /* sums: 1 with, 2 with squares */
  int32_t groups, series;                    /* lists in the order of values: by equal ones too; lists in order of time */
  int32_t last;                              /* of the order of time only the last value is asked for */
  int32_t ranks;                             /* places in the order of values, while sweeping */
} Need;

typedef struct {
  int64_t count, least, greatest, last, last_moment;
  int32_t seen, last_null;
  int64_t *list;        /* its values as integers in the total order, if their order is asked for, or... */
  const Places *ranks;  /* ...their places among `ranked`, while sweeping */
  const int64_t *ranked;
  int64_t *series; /* its values, newest first, if the k-th or all are asked for, or... */
  int64_t from, to; /* ...their numbers among the visible ones, while sweeping */
  int64_t different, most, group; /* while sweeping: different values, how often the most frequent comes, and its rank */
  Sum sum;
} Column;

/* A column's sketch, of one fineness. */
typedef struct {
  int32_t column, kind, bits;
  Registers registers;
  Buckets buckets;
  int64_t *times; /* while sweeping: how often each register and position is there, by number */
} Sketch;

typedef struct {
  int64_t rows;
  Column *column;
  Sketch *sketch;
} Tally;

/* One key's events while its labels are gone through in time. An event is visible once it has arrived and is known, and
 * until it is superseded; visible ones enter each window when its end passes them and leave it when its begin does. The
 * sums are exact, so what was added can be taken out again. */
typedef struct Sweep {
  struct Lane *lane;
  const int64_t *rows;
  int64_t n, stride;
  int64_t *from, *entering, entered; /* from when each may be visible, and places in that order */
  int64_t *until, *ending, ended, endings;
  int64_t *tail, front; /* each window's first place; the first place not yet before the edge */
  uint8_t *visible;
  Tally *tally;   /* of each window */
  Places *ranks;  /* of each window and column whose order is asked for: the ranks of its visible values */
  int64_t **rank, **ranked; /* of each such column: rank by place, value by rank */
  Minima *often;            /* of each window and column with groups: how often a value comes, below zero, by first rank */
  Minima *least, *greatest; /* of each column, by place; the greatest as complements */
  Places *newest, *shown; /* of each column: places of what may be its latest value, and of its visible values */
  int64_t **code, **codes; /* of each sketch of registers: the number of a place's register and position; those by number */
} Sweep;

typedef struct {
  const int64_t *at;
  int64_t left;
  int32_t level;
} Frame;

typedef struct Lane {
  int32_t columns, windows, outputs, sketches, state, known;
  int32_t listed, rows; /* windows up to the longest that asks for single values; whether rows are counted */
  int64_t shift, hop;
  int64_t *window;
  Output *output;
  Need *need;
  Tally own, *tally; /* what results are taken from: `own`, or a window's while sweeping */
  int64_t room;      /* of each list */
  int64_t t, edge, lower; /* values of events that stand in [lower, edge) enter the next window */
  int64_t trusted; /* latest values before this instant may not be the latest */
  int64_t since;   /* latest values before this instant hold no longer */
  int32_t next, damaged, no_memory;
  int64_t *pool, pooled, pool_room; /* values that folds take: n, then n values, oldest first */
  int64_t *words;
  uint8_t *status;
  const Sweep *sweep;
  Bin bins[BINS]; /* empty between calls */
  int32_t depth;
  Frame frame[MAX_DEPTH];
} Lane;

void lane_free(Lane *lane) {
  if (lane == NULL) return;
  for (int c = 0; lane->own.column && c < lane->columns; c++) {
    free(lane->own.column[c].list);
    free(lane->own.column[c].series);
  }
  for (int i = 0; i < lane->sketches; i++) {
    free(lane->own.sketch[i].registers.held);
    buckets_free(&lane->own.sketch[i].buckets);
  }
  free(lane->pool);
  free(lane->own.column);
  free(lane->own.sketch);
  free(lane->window);
  free(lane->output);
  free(lane->need);
  free(lane);
}

/* Give an output its sketch, which outputs of other windows share. */
static int sketch_for(Lane *lane, Output *o) {
  Sketch *s = lane->own.sketch;
  for (o->sketch = 0; o->sketch < lane->sketches; o->sketch++, s++) {
    if (s->column == o->column && s->kind == o->kind && s->bits == o->bits) return 1;
  }
  lane->sketches++;
  s->column = o->column;
  s->kind = o->kind;
  s->bits = s->registers.bits = o->bits;
  if (o->kind == APPROX_QUANTILE) return buckets_make(&s->buckets, o->bits);
  s->registers.held = calloc((size_t)1 << o->bits, 1);
  return s->registers.held != NULL;
}

static int need_for(Lane *lane, Output *o) {
  lane->rows |= o->kind == ROWS;
  if (o->kind == ROWS || o->kind == COUNT) return 1;
  Need *need = lane->need + o->column;
  if (o->kind == LATEST) need->newest = 1;
  if (o->kind == LATEST && o->until >= 0) lane->need[o->until].newest = 1;
  if (o->kind == LEAST || o->kind == GREATEST) need->ranges = 1;
  if ((o->kind == SUM || o->kind == MEAN) && need->sums == 0) need->sums = 1;
  if (o->kind == STDDEV) need->sums = 2;
  if (o->kind == QUANTILE) need->lists = need->ranks = 1;
  if (o->kind == DISTINCT || o->kind == MODE) need->lists = need->ranks = need->groups = 1;
  if (o->kind == APPROX_QUANTILE) need->ranks = 1;
  int sketched = o->kind == APPROX_DISTINCT || o->kind == APPROX_QUANTILE;
  if (o->kind == LAST && o->age == 1 && !lane->state) need->last = 1;
  else if (o->kind == LAST || o->kind == FIRST || o->kind == FOLD) need->series = 1;
  int listed = need->lists || need->series || sketched;
  if (listed && o->kind >= QUANTILE && o->window + 1 > lane->listed) lane->listed = o->window + 1;
  return !sketched || sketch_for(lane, o);
}

/* Make a lane that answers `outputs`; without any it gathers everything, for summaries. NULL if memory is short. */
Lane *lane_new(int32_t columns, const int32_t *types, const Frames *frames, int32_t windows, const int64_t *window,
               int32_t outputs, const Output *output) {
  Lane *lane = calloc(1, sizeof *lane);
  if (lane == NULL) return NULL;
  lane->columns = columns;
  lane->windows = windows;
  lane->outputs = outputs;
  lane->state = frames->state;
  lane->known = frames->known;
  lane->shift = frames->shift;
  lane->hop = frames->hop;
  lane->since = INT64_MIN;
  lane->own.column = calloc((size_t)columns + 1, sizeof(Column));
  lane->need = calloc((size_t)columns + 1, sizeof(Need));
  lane->window = calloc((size_t)windows + 1, sizeof(int64_t));
  lane->output = calloc((size_t)outputs + 1, sizeof(Output));
  size_t sketches = 0;
  for (int i = 0; i < outputs; i++) sketches += output[i].bits > 0;
  lane->own.sketch = calloc(sketches + 1, sizeof(Sketch));
  int made = lane->own.column && lane->own.sketch && lane->need && lane->window && lane->output;
  if (made && windows) memcpy(lane->window, window, (size_t)windows * 8);
  for (int i = 0; i < outputs && made; i++) {
    made = need_for(lane, memcpy(lane->output + i, output + i, sizeof *output));
  }
  if (!made) {
    lane_free(lane);
    return NULL;
  }
  lane->tally = &lane->own;
  lane->rows |= outputs == 0;
  for (int c = 0; c < columns; c++) {
    Need *need = lane->need + c;
    need->type = types[c];
    if (outputs == 0) need->sums = types[c] == REF ? 0 : 2, need->ranges = need->newest = 1;
    sum_clear(&lane->own.column[c].sum);
  }
  return lane;
}

static void clear_columns(const Lane *lane, Tally *tally) {
  tally->rows = 0;
  for (int c = 0; c < lane->columns; c++) {
    Column *column = tally->column + c;
    column->count = 0;
    column->seen = 0;
    if (lane->need[c].sums) sum_clear(&column->sum);
  }
  for (int i = 0; i < lane->sketches; i++) {
    Sketch *s = tally->sketch + i;
    if (s->kind == APPROX_DISTINCT) registers_clear(&s->registers);
    else buckets_clear(&s->buckets);
  }
}

static int64_t lower_of(const Lane *lane, int window) {
  int64_t lower = minus(lane->edge, lane->window[window]);
  if (lane->hop <= 0) return lower;
  int64_t over = lower % lane->hop;
  return minus(lower, over < 0 ? over + lane->hop : over);
}

static void set_lower(Lane *lane) {
  if (lane->next < lane->windows) lane->lower = lower_of(lane, lane->next);
}

/* `at` is where windows begin to reach back from: the moment itself, or its civil time. */
static void begin(Lane *lane, int64_t t, int64_t at, int64_t *words, uint8_t *status) {
  lane->t = t;
  lane->edge = minus(lane->state ? minus(at, -1) : at, lane->shift);
  lane->next = lane->depth = lane->damaged = lane->no_memory = 0;
  lane->trusted = INT64_MIN;
  lane->words = words;
  lane->status = status;
  set_lower(lane);
}

static int lengthen(int64_t **list, int64_t n) {
  int64_t *longer = realloc(*list, (size_t)n * 8);
  if (longer) *list = longer;
  return longer != NULL;
}

/* Make room for n more values in every list. */
static int reserve(Lane *lane, int64_t n) {
  if (lane->next >= lane->listed) return 1;
  int64_t most = n;
  for (int c = 0; c < lane->columns; c++) {
    const Need *need = lane->need + c;
    if ((need->lists || need->series) && lane->own.column[c].count + n > most) most = lane->own.column[c].count + n;
  }
  if (most <= lane->room) return 1;
  most += most / 2;
  for (int c = 0; c < lane->columns; c++) {
    Column *column = lane->own.column + c;
    if (lane->need[c].lists && !lengthen(&column->list, most)) return 0;
    if (lane->need[c].series && !lengthen(&column->series, most)) return 0;
  }
  lane->room = most;
  return 1;
}

static int64_t as_word(double value) {
  int64_t word;
  memcpy(&word, &value, 8);
  return value == value ? word : NAN_BITS;
}

static int of_sum(Lane *lane, const Column *column, int kind, int type, int64_t *word) {
  if (column->count >= MAX_COUNT) {
    lane->damaged = 1;
    return NONE;
  }
  if (kind == SUM && type != FLOAT) return integer_sum(&column->sum, word) ? OK : OVERFLOWED;
  uint32_t n = (uint32_t)column->count;
  if (kind == STDDEV) {
    if (n < 2) return NONE;
    double variance = variance_of(&column->sum, n);
    if (variance < 0.0) lane->damaged = 1;
    *word = as_word(sqrt(variance));
    return OK;
  }
  *word = as_word(sum_over(&column->sum, kind == SUM ? 1 : n));
  return OK;
}

static int of_latest(const Lane *lane, const Column *column, const Output *o, int64_t *word) {
  if (lane->trusted > INT64_MIN && (!column->seen || column->last_moment < lane->trusted)) return STALE;
  if (!column->seen || column->last_moment < lane->since) return NONE;
  if (minus(lane->t, column->last_moment) > o->age) return EXPIRED;
  if (column->last_null) return NONE;
  if (o->until >= 0) {
    const Column *until = lane->tally->column + o->until;
    if (until->seen && !until->last_null && until->last <= lane->t) return NONE;
  }
  *word = lane->need[o->column].type == FLOAT && (column->last & INT64_MAX) > INF_BITS ? NAN_BITS : column->last;
  return OK;
}

static int64_t rank_of(const Column *column, double share) {
  int64_t n = column->count, k = (int64_t)ceil(share * (double)n) - 1;
  if (k < 0) k = 0;
  return k >= n ? n - 1 : k;
}

static int64_t of_quantile(const Column *column, double share) {
  int64_t n = column->count, k = rank_of(column, share);
  return column->ranks ? column->ranked[places_select(column->ranks, k)] : select_value(column->list, n, k);
}

/* Take an estimate from its sketch; of a quantile while sweeping from the exact one, whose bucket it is. */
static int of_sketch(const Lane *lane, const Column *column, const Output *o, int64_t *word) {
  const Sketch *s = lane->tally->sketch + o->sketch;
  int64_t n = column->count;
  if (o->kind == APPROX_DISTINCT) {
    *word = n > 0 ? registers_estimate(&s->registers) : 0;
    return OK;
  }
  if (n <= 0) return NONE;
  int type = lane->need[o->column].type;
  if (!column->ranks) *word = bucket_value(buckets_select(&s->buckets, rank_of(column, o->share)), o->bits);
  else {
    int64_t exact = of_quantile(column, o->share);
    *word = bucket_value(bucket_of(type == FLOAT ? flipped(exact) : exact, type, o->bits), o->bits);
  }
  return OK;
}

static int64_t canonical(int64_t word, int type) {
  return type == FLOAT && (word & INT64_MAX) > INF_BITS ? NAN_BITS : word;
}

/* Zeros are equal, whatever their sign. */
static inline int64_t group_of(int64_t order, int type) { return type == FLOAT && order == -1 ? 0 : order; }

/* Count different values, or find the most frequent: of several the least. */
static int64_t of_groups(const Column *column, int kind, int type) {
  if (column->ranks) return kind == DISTINCT ? column->different : group_of(column->ranked[column->group], type);
  int64_t different = 0, most = 0, found = 0;
  sort_values(column->list, column->count);
  for (int64_t i = 0, k; i < column->count; i = k, different++) {
    int64_t value = group_of(column->list[i], type);
    for (k = i + 1; k < column->count && group_of(column->list[k], type) == value;) k++;
    if (k - i > most) most = k - i, found = value;
  }
  return kind == DISTINCT ? different : found;
}

static int64_t nth(const Lane *lane, const Column *column, int64_t k) {
  if (column->series) return column->series[k];
  const Sweep *s = lane->sweep;
  int c = (int)(column - lane->tally->column);
  return s->rows[places_select(s->shown + c, column->to - 1 - k) * s->stride + EVENT + c];
}

static int of_place(const Lane *lane, const Column *column, const Output *o, int64_t *word) {
  if (o->age < 1 || o->age > column->count) return NONE;
  int type = lane->need[o->column].type;
  /* The newest value of all is the last one of every window that holds any. */
  if (o->kind == LAST && o->age == 1 && column == lane->own.column + o->column && lane->need[o->column].last) {
    *word = canonical(column->last, type);
    return OK;
  }
  *word = canonical(nth(lane, column, o->kind == LAST ? o->age - 1 : column->count - o->age), type);
  return OK;
}

/* Hand a window's values on, oldest first; the result says where they are. */
static int of_fold(Lane *lane, const Column *column, int type, int64_t *word) {
  int64_t n = column->count, room = lane->pooled + n + 1;
  if (room > lane->pool_room && !lengthen(&lane->pool, room + room / 2)) {
    lane->no_memory = 1;
    return NONE;
  }
  if (room > lane->pool_room) lane->pool_room = room + room / 2;
  *word = lane->pooled;
  lane->pool[lane->pooled++] = n;
  while (n--) lane->pool[lane->pooled++] = canonical(nth(lane, column, n), type);
  return OK;
}

static int result_of(Lane *lane, const Output *o, int64_t *word) {
  if (o->kind == ROWS) {
    *word = lane->tally->rows;
    return OK;
  }
  const Column *column = lane->tally->column + o->column;
  int type = lane->need[o->column].type;
  if (o->kind == COUNT) {
    *word = column->count;
    return OK;
  }
  if (o->kind == LATEST) return of_latest(lane, column, o, word);
  if (o->kind >= APPROX_DISTINCT) return of_sketch(lane, column, o, word);
  if (o->kind == DISTINCT && column->count <= 0) {
    *word = 0;
    return OK;
  }
  if (column->count <= 0) return NONE;
  if (o->kind == LAST || o->kind == FIRST) return of_place(lane, column, o, word);
  if (o->kind == FOLD) return of_fold(lane, column, type, word);
  if (o->kind == DISTINCT || o->kind == MODE) *word = of_groups(column, o->kind, type);
  else if (o->kind == LEAST) *word = column->least;
  else if (o->kind == GREATEST) *word = column->greatest;
  else if (o->kind == QUANTILE) *word = of_quantile(column, o->share);
  else return of_sum(lane, column, o->kind, type, word);
  if (type == FLOAT && o->kind != DISTINCT) *word = flipped(*word);
  return OK;
}

/* Write the outputs of one window (-1: of none); a missing double is NaN, any other missing word 0. */
static void finish(Lane *lane, int window) {
  for (int i = 0; i < lane->outputs; i++) {
    const Output *o = lane->output + i;
    if (o->window != window) continue;
    int status = result_of(lane, o, lane->words + o->place);
    lane->status[o->place] = (uint8_t)status;
    if (status == OK) continue;
    int real = o->kind == MEAN || o->kind == STDDEV || o->kind == APPROX_QUANTILE || lane->need[o->column].type == FLOAT;
    lane->words[o->place] = real && o->kind != FOLD ? NAN_BITS : 0;
  }
}

/* ==== Reading events, newest first ==== */

/* Windows are nested, so one tally serves them all: when the scan passes a window's lower edge, that window is
 * finished and the scan goes on for the next longer one. */
static void pass(Lane *lane, int64_t moment) {
  while (lane->next < lane->windows && moment < lane->lower) {
    finish(lane, lane->next++);
    set_lower(lane);
  }
}

static void finish_rest(Lane *lane) {
  while (lane->next < lane->windows) finish(lane, lane->next++);
  finish(lane, -1);
}

static inline int null_at(const int64_t *e, int c) { return (int)((uint64_t)e[MASK] >> c & 1); }

static inline void note_newest(const Lane *lane, Column *column, int64_t moment, int64_t value, int null) {
  if (column->seen || (null && !lane->state)) return;
  column->seen = 1;
  column->last_null = null;
  column->last = null ? 0 : value;
  column->last_moment = moment;
}

/* A run of events that stand `stride` words apart. If `until` is not 0, that word of each says when it was superseded,
 * and one counts only while it holds at the lane's moment. An event that stands elsewhere counts only once it is known. */
typedef struct {
  const int64_t *at;
  int64_t n;
  int32_t stride, until;
} Run;

static inline int holds(const Lane *lane, const Run *run, const int64_t *e) {
  if (lane->known >= 0 && e[EVENT + lane->known] >= (lane->state ? minus(lane->t, -1) : lane->t)) return 0;
  return !run->until || (e[ARRIVAL] <= lane->t && lane->t < e[run->until]);
}

static inline int counts(const Lane *lane, const Run *run, const int64_t *e, int c) {
  return !null_at(e, c) && holds(lane, run, e);
}

static void absorb_order(Lane *lane, int c, const int64_t *value, int64_t values) {
  const Need *need = lane->need + c;
  Column *column = lane->own.column + c;
  int64_t least = column->least, greatest = column->greatest, n = column->count;
  int listed = need->lists && lane->next < lane->listed;
  if (n == 0) least = INT64_MAX, greatest = INT64_MIN;
  for (int64_t i = 0; i < values; i++) {
    int64_t v = ordered(value[i], need->type);
    least = v < least ? v : least;
    greatest = v > greatest ? v : greatest;
    if (listed) column->list[n++] = v;
  }
  column->least = least;
  column->greatest = greatest;
}

static void absorb_series(Lane *lane, const Run *run, int c) {
  Column *column = lane->own.column + c;
  int64_t n = column->count;
  for (const int64_t *e = run->at + run->n * run->stride; e > run->at;) {
    e -= run->stride;
    if (counts(lane, run, e, c)) column->series[n++] = e[EVENT + c];
  }
}

static void absorb_last(Lane *lane, const Run *run, int c) {
  for (const int64_t *e = run->at + run->n * run->stride; e > run->at && !lane->own.column[c].seen;) {
    e -= run->stride;
    if (counts(lane, run, e, c)) note_newest(lane, lane->own.column + c, e[MOMENT], e[EVENT + c], 0);
  }
}

static void absorb_sketch(Lane *lane, const Run *run, Sketch *s) {
  int c = s->column, type = lane->need[c].type;
  for (const int64_t *e = run->at, *end = e + run->n * run->stride; e < end; e += run->stride) {
    if (!counts(lane, run, e, c)) continue;
    if (s->kind == APPROX_DISTINCT) registers_add(&s->registers, position_of(e[EVENT + c], type, s->bits));
    else if (!buckets_add(&s->buckets, bucket_of(e[EVENT + c], type, s->bits))) lane->no_memory = 1;
  }
}

/* Take a run into the tally's windows, a block of values at a time. Loops of their own for order and sums are faster than
 * one for both. */
static void absorb(Lane *lane, const Run *run) {
  const int64_t *end = run->at + run->n * run->stride;
  if (lane->rows) {
    for (const int64_t *e = run->at; e < end; e += run->stride) lane->own.rows += holds(lane, run, e);
  }
  for (int i = 0; i < lane->sketches && lane->next < lane->listed; i++) absorb_sketch(lane, run, lane->own.sketch + i);
  for (int c = 0; c < lane->columns; c++) {
    const Need *need = lane->need + c;
    Column *column = lane->own.column + c;
    if (need->series && lane->next < lane->listed) absorb_series(lane, run, c);
    if (need->last) absorb_last(lane, run, c);
    for (const int64_t *e = run->at; e < end;) {
      int64_t value[BLOCK], n = 0;
      for (; e < end && n < BLOCK; e += run->stride) {
        if (counts(lane, run, e, c)) value[n++] = e[EVENT + c];
      }
      if (need->ranges | need->lists) absorb_order(lane, c, value, n);
      if (need->sums) sum_add(&column->sum, lane->bins, value, n, need->type, need->sums > 1);
      column->count += n;
    }
  }
}

static int newest_seen(const Lane *lane) {
  for (int c = 0; c < lane->columns; c++) {
    if (lane->need[c].newest && !lane->own.column[c].seen) return 0;
  }
  return 1;
}

/* Go back over a run until every latest value that is asked for has been seen; return whether that is so. */
static int find_newest(Lane *lane, const Run *run) {
  int seen = newest_seen(lane);
  for (const int64_t *e = run->at + run->n * run->stride; e > run->at && !seen;) {
    e -= run->stride;
    if (!holds(lane, run, e)) continue;
    for (int c = 0; c < lane->columns; c++) {
      if (lane->need[c].newest) note_newest(lane, lane->own.column + c, e[MOMENT], e[EVENT + c], null_at(e, c));
    }
    seen = newest_seen(lane);
  }
  return seen;
}

/* Return how many of n events have a moment below `moment`. */
static int64_t events_below(const int64_t *at, int64_t n, int64_t stride, int64_t moment) {
  int64_t lo = 0, hi = n;
  if (n == 0 || at[(n - 1) * stride] < moment) return n;
  while (lo < hi) {
    int64_t mid = lo + (hi - lo) / 2;
    if (at[mid * stride] < moment) lo = mid + 1;
    else hi = mid;
  }
  return lo;
}

/* Take in a run. Return 0, ENOUGH when nothing older can matter, or NO_MEMORY. */
static int absorb_run(Lane *lane, Run run) {
  run.n = events_below(run.at, run.n, run.stride, lane->edge);
  int seen = find_newest(lane, &run);
  if (run.n && !reserve(lane, run.n)) return NO_MEMORY;
  while (run.n) {
    pass(lane, run.at[(run.n - 1) * run.stride]);
    if (lane->next == lane->windows) return seen ? ENOUGH : 0;
    Run part = run;
    run.n = events_below(run.at, run.n, run.stride, lane->lower);
    part.at += run.n * run.stride;
    part.n -= run.n;
    absorb(lane, &part);
  }
  return 0;
}

static int64_t entry_words(const Lane *lane) { return ENTRY + (int64_t)PART * lane->columns; }

/* Return whether the parts of a stored entry lie inside what the tally can hold. */
static int sound(const Lane *lane, const int64_t *entry) {
  if (entry[ENTRY_ROWS] < 0 || entry[ENTRY_ROWS] >= MAX_COUNT) return 0;
  for (int c = 0; c < lane->columns; c++) {
    const int64_t *part = entry + ENTRY + PART * c;
    if (part[P_COUNT] < 0 || part[P_COUNT] >= MAX_COUNT) return 0;
    if ((part[P_MARKS] >> 8 & 255) + SUM_PART > SUM_WORDS) return 0;
    if ((part[P_MARKS] >> 16 & 255) + SQUARE_PART > SQUARE_WORDS) return 0;
  }
  return 1;
}

static void merge_sum(Sum *s, const int64_t *part) {
  int64_t marks = part[P_MARKS];
  int low = (int)(marks >> 8 & 255), square_low = (int)(marks >> 16 & 255);
  uint64_t *side = s->side[(marks & NEGATIVE) != 0];
  s->plus_inf += (marks & PLUS_INF) != 0;
  s->minus_inf += (marks & MINUS_INF) != 0;
  s->nans += (marks & NANS) != 0;
  int end = add_words(side, low, SUM_WORDS, (const uint64_t *)part + P_SUM, SUM_PART);
  widen(&s->low, &s->high, low, end);
  end = add_words(s->square, square_low, SQUARE_WORDS, (const uint64_t *)part + P_SQUARE, SQUARE_PART);
  widen(&s->square_low, &s->square_high, square_low, end);
}

static void merge_part(const Need *need, Column *column, const int64_t *part) {
  if (part[P_COUNT] == 0) return;
  if (column->count == 0 || part[P_LEAST] < column->least) column->least = part[P_LEAST];
  if (column->count == 0 || part[P_GREATEST] > column->greatest) column->greatest = part[P_GREATEST];
  if (need->sums) merge_sum(&column->sum, part);
  column->count += part[P_COUNT];
}

static void merge_entry(Lane *lane, const int64_t *entry, int windowed) {
  if (windowed) lane->own.rows += entry[ENTRY_ROWS];
  for (int c = 0; c < lane->columns; c++) {
    const int64_t *part = entry + ENTRY + PART * c;
    Column *column = lane->own.column + c;
    int64_t marks = part[P_MARKS];
    if (marks & SEEN) note_newest(lane, column, part[P_LAST_MOMENT], part[P_LAST], (marks & LAST_NULL) != 0);
    if (windowed) merge_part(lane->need + c, column, part);
  }
}

/* Return whether a sum that is asked for was too wide for the entry. */
static int too_wide(const Lane *lane, const int64_t *entry) {
  for (int c = 0; c < lane->columns; c++) {
    if (lane->need[c].sums && entry[ENTRY + PART * c + P_MARKS] & WIDE) return 1;
  }
  return 0;
}

/* Return whether every event below an entry is known: its summary holds the greatest instant. */
static int all_known(const Lane *lane, const int64_t *entry) {
  if (lane->known < 0) return 1;
  return entry[ENTRY + PART * lane->known + P_GREATEST] < (lane->state ? minus(lane->t, -1) : lane->t);
}

/* Take in one entry, or return the reference of its block, which must be read instead. */
static int64_t absorb_entry(Lane *lane, const Frame *frame, const int64_t *entry) {
  int64_t reference = entry[REFERENCE], level = reference & 255;
  /* Levels go down, so damaged references cannot lead in a circle. */
  if (reference <= 0 || level >= frame->level || !sound(lane, entry)) return CORRUPT;
  if (entry[BEGIN] >= lane->edge) return 0;
  if (entry[END] >= lane->edge || !all_known(lane, entry)) return reference;
  pass(lane, entry[END]);
  if (lane->next == lane->windows) {
    if (newest_seen(lane)) return ENOUGH;
    merge_entry(lane, entry, 0);
    return 0;
  }
  if (entry[BEGIN] < lane->lower || lane->next < lane->listed || too_wide(lane, entry)) return reference;
  merge_entry(lane, entry, 1);
  return 0;
}

/* Go on reading: 0 when the outputs are written, a block's reference when its bytes are needed, or an error. */
static int64_t go_on(Lane *lane) {
  while (lane->depth) {
    Frame *frame = lane->frame + lane->depth - 1;
    int64_t found = 0;
    if (frame->level == 0) {
      found = absorb_run(lane, (Run){frame->at, frame->left, EVENT + lane->columns, 0});
      frame->left = 0;
    } else if (frame->left) found = absorb_entry(lane, frame, frame->at + --frame->left * entry_words(lane));
    if (found == ENOUGH) break;
    if (found) return found;
    if (frame->left == 0) lane->depth--;
  }
  finish_rest(lane);
  if (lane->no_memory) return NO_MEMORY;
  return lane->damaged ? CORRUPT : 0;
}

static int push(Lane *lane, const int64_t *at, int64_t words, int64_t level) {
  int64_t size = level ? entry_words(lane) : EVENT + lane->columns;
  if (words % size || lane->depth == MAX_DEPTH) return CORRUPT;
  lane->frame[lane->depth++] = (Frame){at, words / size, (int32_t)level};
  return 0;
}

/* From now on let latest values hold only if they are not older than an instant. */
void lane_since(Lane *lane, int64_t since) { lane->since = since; }

/* Begin to read a head (NULL: there is none) as of t. `head` and blocks must stay until the read has ended. */
int64_t read_head(Lane *lane, const int64_t *head, int64_t bytes, int64_t t, int64_t at, int64_t *words,
                  uint8_t *status) {
  begin(lane, t, at, words, status);
  lane->pooled = 0;
  clear_columns(lane, &lane->own);
  if (head) {
    if (bytes < HEAD * 8 || bytes % 8) return CORRUPT;
    if ((head[0] & 255) != FORMAT || (head[0] >> 8 & 255) != lane->columns) return CORRUPT;
    if (head[0] >> 16 & REBUILD) lane->trusted = head[HEAD_FLOOR];
    int64_t sealed = (int64_t)((uint64_t)head[0] >> 32) * entry_words(lane), open = bytes / 8 - HEAD - sealed;
    if (open < 0 || push(lane, head + HEAD, sealed, ANY_LEVEL)) return CORRUPT;
    if (push(lane, head + HEAD + sealed, open, 0)) return CORRUPT;
  }
  return go_on(lane);
}

/* What a row is read with: each reader's lane, which of the row's keys it reads (ascending), where its results begin; and
 * for `read_row` the sizes of its heads and where all results go. */
typedef struct {
  int64_t readers, keys;
  Lane *const *lane;
  const int64_t *key, *place, *bytes;
  int64_t *words, *left;
  uint8_t *status;
} Readers;

/* Read n rows' heads, which stand one behind the other (0 bytes: there is none; -1: there is no key, so nothing is read),
 * results `width` words apart. `back` says from where each reader's windows reach back (NULL: from t). `left` gets what
 * `read_head` returned for each row and reader; return how many of them need blocks or are damaged, or stand behind a
 * damaged one of no whole words. Only of a single row can the reads be gone on with, since the next row takes the readers. */
int64_t read_rows(const Readers *with, int64_t n, const uint8_t *heads, const int64_t *bytes, int64_t t,
                  const int64_t *back, int64_t width, int64_t *words, uint8_t *status, int64_t *left) {
  int64_t found = 0;
  for (int64_t i = 0; i < n; i++, bytes += with->keys, left += with->readers) {
    int64_t key = 0;
    for (int64_t r = 0; r < with->readers; r++) {
      for (; key < with->key[r]; key++) heads += bytes[key] > 0 ? bytes[key] : 0;
      const int64_t *head = bytes[key] > 0 ? (const int64_t *)(const void *)heads : NULL;
      int64_t at = back ? back[r] : t, place = i * width + with->place[r];
      if (bytes[key] < 0) left[r] = 0;
      else if ((uintptr_t)head & 7) left[r] = CORRUPT;
      else left[r] = read_head(with->lane[r], head, bytes[key], t, at, words + place, status + place);
      found += left[r] != 0;
    }
    for (; key < with->keys; key++) heads += bytes[key] > 0 ? bytes[key] : 0;
  }
  return found;
}

/* Read one row; a foreign call takes longer for each argument. */
int64_t read_row(const Readers *with, const uint8_t *heads, int64_t t, const int64_t *back) {
  return read_rows(with, 1, heads, with->bytes, t, back, 0, with->words, with->status, with->left);
}

/* Go on with the block whose reference the last call returned. */
int64_t read_block(Lane *lane, const int64_t *block, int64_t bytes, int64_t reference) {
  if (bytes % 8 || push(lane, block, bytes / 8, reference & 255)) return CORRUPT;
  return go_on(lane);
}

/* ==== Summaries of blocks ==== */

/* Store the words [low, high) in `room` words; return their place, or -1 if they do not fit. */
static int pack_words(const uint64_t *word, int low, int high, int end, int room, int64_t *out) {
  while (high > low && word[high - 1] == 0) high--;
  while (low < high && word[low] == 0) low++;
  if (high - low > room) return -1;
  if (low >= high) return end / 2; /* where integers stand: a place like any other */
  int at = low + room > end ? end - room : low;
  memcpy(out + low - at, word + low, (size_t)(high - low) * 8);
  return at;
}

static int64_t pack_sum(const Sum *s, int64_t *part) {
  Total t;
  total_of(s, &t);
  int at = pack_words(t.word, t.low, t.high, SUM_WORDS, SUM_PART, part + P_SUM);
  int square = pack_words(s->square, s->square_low, s->square_high, SQUARE_WORDS, SQUARE_PART, part + P_SQUARE);
  int64_t marks = (s->plus_inf ? PLUS_INF : 0) | (s->minus_inf ? MINUS_INF : 0) | (s->nans ? NANS : 0);
  if (at < 0 || square < 0) return marks | WIDE;
  return marks | (t.sign < 0 ? NEGATIVE : 0) | (int64_t)at << 8 | (int64_t)square << 16;
}

static void pack_entry(const Lane *lane, uint64_t wide, int64_t *entry) {
  entry[ENTRY_ROWS] = lane->own.rows;
  for (int c = 0; c < lane->columns; c++) {
    const Column *column = lane->own.column + c;
    int64_t *part = entry + ENTRY + PART * c;
    memset(part, 0, PART * 8);
    part[P_COUNT] = column->count;
    part[P_LEAST] = column->count ? column->least : 0;
    part[P_GREATEST] = column->count ? column->greatest : 0;
    part[P_LAST] = column->seen ? column->last : 0;
    part[P_LAST_MOMENT] = column->seen ? column->last_moment : 0;
    part[P_MARKS] = pack_sum(&column->sum, part) | (column->seen ? SEEN : 0);
    if (column->seen && column->last_null) part[P_MARKS] |= LAST_NULL;
    if (wide >> c & 1) part[P_MARKS] |= WIDE;
  }
}

/* Write the entry of a block that is not empty; `lane` was made without outputs. */
int64_t summarize(Lane *lane, const int64_t *block, int64_t bytes, int64_t reference, int64_t *entry) {
  int64_t level = reference & 255, words = bytes / 8, size = level ? entry_words(lane) : EVENT + lane->columns;
  uint64_t wide = 0;
  if (bytes % 8 || words == 0 || words % size) return CORRUPT;
  clear_columns(lane, &lane->own);
  if (level == 0) {
    Run run = {block, words / size, (int32_t)size, 0};
    absorb(lane, &run);
    find_newest(lane, &run);
  }
  for (const int64_t *at = block + words; level && at > block;) {
    at -= size;
    if (!sound(lane, at)) return CORRUPT;
    merge_entry(lane, at, 1);
    for (int c = 0; c < lane->columns; c++) {
      if (at[ENTRY + PART * c + P_MARKS] & WIDE) wide |= (uint64_t)1 << c;
    }
  }
  entry[BEGIN] = block[0];
  memcpy(entry + END, block + words - size + (level ? END : 0), 3 * 8);
  entry[REFERENCE] = reference;
  pack_entry(lane, wide, entry);
  return 0;
}

/* ==== Scanning many labels ==== */

/* Events of all keys that are asked for, sorted by (key, moment, arrival, row); a row has one word more than an event,
 * the arrival that superseded it. */
typedef struct {
  int64_t n;
  const int64_t *key, *moment, *arrival, *until, *row, *words;
  const uint8_t *null;
} Events;

typedef struct {
  int64_t n;
  const int64_t *key, *t, *at, *place; /* sorted by (key, t, at); `place` says where results go */
  const int64_t *since;                /* of each label, before which instant latest values hold no longer; may be NULL */
} Labels;

/* Memory that is released all at once. */
typedef struct Piece {
  struct Piece *next;
  int64_t pad; /* what follows stays aligned to 16 bytes */
} Piece;

typedef struct {
  Piece *first;
  int failed;
} Pool;

static void *take(Pool *pool, int64_t n, size_t size) {
  Piece *piece = calloc(1, sizeof *piece + (size_t)n * size);
  if (piece == NULL) {
    pool->failed = 1;
    return NULL;
  }
  piece->next = pool->first;
  pool->first = piece;
  return piece + 1;
}

static void release(Pool *pool) {
  while (pool->first) {
    Piece *next = pool->first->next;
    free(pool->first);
    pool->first = next;
  }
}

/* Mark the keys that have labels, then turn marks into the places of their events: start[k] to start[k + 1]. */
static int64_t count_events(const Events *events, const Labels *labels, int64_t keys, int64_t *start) {
  for (int64_t i = 0; i < labels->n; i++) {
    if (labels->key[i] >= 0 && labels->key[i] < keys) start[labels->key[i] + 1] = 1;
  }
  /* A key's count stands doubled above its mark, which so survives the counting. */
  for (int64_t i = 0; i < events->n; i++) {
    int64_t k = events->key[i];
    if (k >= 0) start[k + 1] += 2 * (start[k + 1] & 1);
  }
  for (int64_t k = 1; k <= keys; k++) start[k] = start[k - 1] + (start[k] >> 1);
  return start[keys];
}

/* Rows of thousands of keys are written in turn, each to another page: large pages make that several times faster. */
static int64_t *take_large(int64_t words) {
  size_t page = (size_t)1 << 21, bytes = ((size_t)words * 8 + page) & ~(page - 1);
  if (bytes == page) return malloc((size_t)words * 8 + 8);
  int64_t *at = aligned_alloc(page, bytes);
#ifdef MADV_HUGEPAGE
  if (at) madvise(at, bytes, MADV_HUGEPAGE);
#endif
  return at;
}

/* Find which of the events [from, to) belong to keys of [first, last) that have labels. It does not branch on a key: no
 * processor could guess which way. */
static int64_t wanted(const Events *events, int64_t from, int64_t to, int64_t first, int64_t last, const int64_t *start,
                      int64_t *place) {
  const int64_t *key = events->key;
  int64_t near = 0, n = 0;
  for (int64_t i = from; i < to; i++) {
    place[near] = i;
    near += (key[i] >= first) & (key[i] < last);
  }
  for (int64_t i = 0; i < near; i++) {
    int64_t k = key[place[i]];
    place[n] = place[i];
    n += start[k] < start[k + 1];
  }
  return n;
}

static void put_row(const Events *events, int64_t i, int64_t m, int64_t *row) {
  row[MOMENT] = events->moment[i];
  row[ARRIVAL] = events->arrival[i];
  row[ROW] = events->row[i];
  uint64_t mask = 0;
  for (int64_t c = 0; c < m; c++) {
    row[EVENT + c] = events->words[i * m + c];
    mask |= (uint64_t)(events->null[i * m + c] != 0) << c;
  }
  row[MASK] = (int64_t)mask;
  row[EVENT + m] = events->until[i];
}

/* Put the rows of the keys [first, last) one key's behind the other's; `end` has room for as many places. */
static void gather_rows(const Lane *lane, const Events *events, int64_t first, int64_t last, const int64_t *start,
                        int64_t *end, int64_t *rows) {
  int64_t m = lane->columns, stride = EVENT + m + 1, place[BLOCK];
  for (int64_t k = first; k < last; k++) end[k] = start[k] - start[first];
  for (int64_t from = 0, to; from < events->n; from = to) {
    to = events->n - from < BLOCK ? events->n : from + BLOCK;
    int64_t n = wanted(events, from, to, first, last, start, place);
    for (int64_t i = 0; i < n; i++) put_row(events, place[i], m, rows + end[events->key[place[i]]]++ * stride);
  }
}

/* Put one key's rows in order; most input is already. */
static int sort_rows(int64_t *rows, int64_t n, int64_t stride) {
  int64_t sorted = 1;
  while (sorted < n && !after(rows + (sorted - 1) * stride, rows + sorted * stride, MASK)) sorted++;
  if (sorted >= n) return 1;
  Pool pool = {0};
  int64_t *place = take(&pool, n, 8), *spare = take(&pool, n, 8), *copy = take(&pool, n * stride, 8);
  if (!pool.failed) {
    for (int64_t i = 0; i < n; i++) place[i] = i;
    sort_places(rows, stride, MASK, place, spare, n);
    memcpy(copy, rows, (size_t)(n * stride) * 8);
    for (int64_t i = 0; i < n; i++) memcpy(rows + i * stride, copy + place[i] * stride, (size_t)stride * 8);
  }
  release(&pool);
  return !pool.failed;
}

static void make_places(Places *p, int64_t n, Pool *pool) {
  p->words = (n + 63) / 64;
  p->bit = take(pool, p->words, 8);
  p->tree = take(pool, p->words + 1, 8);
}

static void make_minima(Minima *m, int64_t n, int64_t value, Pool *pool) {
  for (int i = 0;; i++) {
    m->size[i] = n;
    m->level[i] = take(pool, n, 8);
    for (int64_t k = 0; m->level[i] && k < n; k++) m->level[i][k] = value;
    if (n == 1) return;
    n = (n + 63) / 64;
  }
}

static void make_ranks(Sweep *s, int c, Pool *pool) {
  int64_t *value = take(pool, s->n, 8), *order = take(pool, s->n, 8), *spare = take(pool, s->n, 8);
  s->rank[c] = take(pool, s->n, 8);
  s->ranked[c] = take(pool, s->n, 8);
  if (pool->failed) return;
  for (int64_t i = 0; i < s->n; i++) {
    value[i] = ordered(s->rows[i * s->stride + EVENT + c], s->lane->need[c].type);
    order[i] = i;
  }
  sort_places(value, 1, 1, order, spare, s->n);
  for (int64_t i = 0; i < s->n; i++) {
    s->rank[c][order[i]] = i;
    s->ranked[c][i] = value[order[i]];
  }
}

static void make_column(Sweep *s, int c, Pool *pool) {
  const Need *need = s->lane->need + c;
  if (need->ranges) {
    make_minima(s->least + c, s->n, INT64_MAX, pool);
    make_minima(s->greatest + c, s->n, INT64_MAX, pool);
  }
  if (need->newest) make_places(s->newest + c, s->n, pool);
  if (need->series || need->last) make_places(s->shown + c, s->n, pool);
  if (need->ranks) make_ranks(s, c, pool);
  for (int w = 0; w < s->lane->windows; w++) {
    int64_t at = w * s->lane->columns + c;
    if (need->ranks) make_places(s->ranks + at, s->n, pool);
    if (need->groups) make_minima(s->often + at, s->n, 0, pool);
    if (pool->failed) return;
    Column *column = s->tally[w].column + c;
    sum_clear(&column->sum);
    column->ranks = need->ranks ? s->ranks + at : NULL;
    column->ranked = s->ranked[c];
  }
}

/* Number what values put into registers, in order: what stands beside each other goes to the same register. */
static void make_codes(Sweep *s, int i, Pool *pool) {
  const Sketch *of = s->lane->own.sketch + i;
  int64_t *value = take(pool, s->n, 8), *order = take(pool, s->n, 8), *spare = take(pool, s->n, 8), n = 0;
  int64_t *number = s->code[i] = take(pool, s->n, 8), *codes = s->codes[i] = take(pool, s->n, 8);
  if (pool->failed) return;
  for (int64_t k = 0; k < s->n; k++) {
    value[k] = position_of(s->rows[k * s->stride + EVENT + of->column], s->lane->need[of->column].type, of->bits);
    order[k] = k;
  }
  sort_places(value, 1, 1, order, spare, s->n);
  for (int64_t k = 0; k < s->n; k++) {
    if (n == 0 || codes[n - 1] != value[order[k]]) codes[n++] = value[order[k]];
    number[order[k]] = n - 1;
  }
  for (int w = 0; w < s->lane->windows && !pool->failed; w++) {
    Sketch *mine = s->tally[w].sketch + i;
    mine->registers.bits = of->bits;
    mine->registers.held = take(pool, (int64_t)1 << of->bits, 1);
    mine->registers.often[0] = (int64_t)1 << of->bits;
    mine->times = take(pool, n, 8);
  }
}

/* Note when each event becomes visible and is superseded; one that never is visible enters nothing. */
static void make_turns(Sweep *s, int64_t *spare) {
  int64_t kept = 0;
  for (int64_t i = 0; i < s->n; i++) {
    const int64_t *row = s->rows + i * s->stride;
    int64_t until = row[EVENT + s->lane->columns];
    int64_t moment = s->lane->known < 0 ? row[MOMENT] : row[EVENT + s->lane->known];
    int64_t known = s->lane->state ? moment : minus(moment, -1);
    s->from[i] = known > row[ARRIVAL] ? known : row[ARRIVAL];
    s->until[i] = until;
    if (s->from[i] >= until) continue;
    s->entering[kept++] = i;
    if (until < INT64_MAX) s->ending[s->endings++] = i;
  }
  sort_places(s->from, 1, 1, s->entering, spare, kept);
  sort_places(s->until, 1, 1, s->ending, spare, s->endings);
  s->entering[kept] = -1; /* nothing follows */
}

static int make_sweep(Sweep *s, Pool *pool) {
  int64_t n = s->n, m = s->lane->columns, windows = s->lane->windows;
  s->from = take(pool, n, 8);
  s->until = take(pool, n, 8);
  s->entering = take(pool, n + 1, 8);
  s->ending = take(pool, n + 1, 8);
  s->tail = take(pool, windows, 8);
  s->visible = take(pool, n, 1);
  s->tally = take(pool, windows, sizeof(Tally));
  s->ranks = take(pool, windows * m, sizeof(Places));
  s->often = take(pool, windows * m, sizeof(Minima));
  s->rank = take(pool, m, sizeof(int64_t *));
  s->ranked = take(pool, m, sizeof(int64_t *));
  s->least = take(pool, m, sizeof(Minima));
  s->greatest = take(pool, m, sizeof(Minima));
  s->newest = take(pool, m, sizeof(Places));
  s->shown = take(pool, m, sizeof(Places));
  s->code = take(pool, s->lane->sketches, sizeof(int64_t *));
  s->codes = take(pool, s->lane->sketches, sizeof(int64_t *));
  int64_t *spare = take(pool, n, 8);
  if (pool->failed) return 0;
  for (int w = 0; w < windows; w++) {
    s->tally[w].column = take(pool, m, sizeof(Column));
    s->tally[w].sketch = take(pool, s->lane->sketches, sizeof(Sketch));
  }
  for (int c = 0; c < m && !pool->failed; c++) make_column(s, c, pool);
  for (int i = 0; i < s->lane->sketches && !pool->failed; i++) {
    if (s->lane->own.sketch[i].kind == APPROX_DISTINCT) make_codes(s, i, pool);
  }
  if (pool->failed) return 0;
  make_turns(s, spare);
  return 1;
}

/* Return the rank of the first of the values that equal the one of a rank. */
static int64_t first_rank(const Sweep *s, int c, int64_t rank) {
  const int64_t *ranked = s->ranked[c];
  int type = s->lane->need[c].type;
  int64_t value = group_of(ranked[rank], type), lo = 0, hi = rank;
  while (lo < hi) {
    int64_t mid = lo + (hi - lo) / 2;
    if (group_of(ranked[mid], type) < value) lo = mid + 1;
    else hi = mid;
  }
  return lo;
}

static void group_change(Sweep *s, int64_t at, Column *column, int64_t rank, int by) {
  Minima *often = s->often + at;
  int64_t before = -often->level[0][rank];
  column->different += (before + by > 0) - (before > 0);
  minima_set(often, rank, -(before + by));
}

/* Put a value into a window's registers or take it out: then the register falls back to the next position that is there. */
static void registers_change(Sweep *s, int w, int i, int64_t place, int by) {
  Sketch *mine = s->tally[w].sketch + i;
  const int64_t *codes = s->codes[i];
  int64_t number = s->code[i][place], at = codes[number] / POSITIONS, position = codes[number] % POSITIONS;
  mine->times[number] += by;
  if (by > 0) registers_add(&mine->registers, codes[number]);
  else if (mine->times[number] == 0 && mine->registers.held[at] == position) {
    while (number >= 0 && codes[number] / POSITIONS == at && mine->times[number] == 0) number--;
    int there = number >= 0 && codes[number] / POSITIONS == at;
    register_set(&mine->registers, at, there ? (int)(codes[number] % POSITIONS) : 0);
  }
}

static void window_change(Sweep *s, int w, int64_t place, int by) {
  const int64_t *row = s->rows + place * s->stride;
  int m = s->lane->columns;
  s->tally[w].rows += by;
  for (int c = 0; c < m; c++) {
    if (null_at(row, c)) continue;
    const Need *need = s->lane->need + c;
    Column *column = s->tally[w].column + c;
    column->count += by;
    if (need->sums) sum_change(&column->sum, row[EVENT + c], need->type, need->sums > 1, by);
    if (need->ranks) places_change(s->ranks + w * m + c, s->rank[c][place], by);
    if (need->groups) group_change(s, w * m + c, column, first_rank(s, c, s->rank[c][place]), by);
  }
  for (int i = 0; i < s->lane->sketches; i++) {
    const Sketch *of = s->lane->own.sketch + i;
    if (of->kind == APPROX_DISTINCT && !null_at(row, of->column)) registers_change(s, w, i, place, by);
  }
}

static void show(Sweep *s, int64_t place, int by) {
  const int64_t *row = s->rows + place * s->stride;
  s->visible[place] = by > 0;
  for (int c = 0; c < s->lane->columns; c++) {
    const Need *need = s->lane->need + c;
    int null = null_at(row, c);
    if (need->newest && (s->lane->state || !null)) places_change(s->newest + c, place, by);
    if ((need->series || need->last) && !null) places_change(s->shown + c, place, by);
    if (!need->ranges || null) continue;
    int64_t v = ordered(row[EVENT + c], need->type);
    minima_set(s->least + c, place, by > 0 ? v : INT64_MAX);
    minima_set(s->greatest + c, place, by > 0 ? ~v : INT64_MAX);
  }
  for (int w = 0; w < s->lane->windows; w++) {
    if (place >= s->tail[w] && place < s->front) window_change(s, w, place, by);
  }
}

/* Bring every window to the lane's moment. What is too old leaves first: late events then enter only where they fit. */
static void move_to(Sweep *s) {
  Lane *lane = s->lane;
  for (; s->front < s->n && s->rows[s->front * s->stride] < lane->edge; s->front++) {
    for (int w = 0; s->visible[s->front] && w < lane->windows; w++) window_change(s, w, s->front, 1);
  }
  for (int w = 0; w < lane->windows; w++) {
    int64_t lower = lower_of(lane, w), *tail = s->tail + w;
    for (; *tail < s->front && s->rows[*tail * s->stride] < lower; ++*tail) {
      if (s->visible[*tail]) window_change(s, w, *tail, -1);
    }
  }
  for (int64_t i; (i = s->entering[s->entered]) >= 0 && s->from[i] <= lane->t; s->entered++) {
    if (s->until[i] > lane->t) show(s, i, 1);
  }
  for (; s->ended < s->endings && s->until[s->ending[s->ended]] <= lane->t; s->ended++) {
    if (s->visible[s->ending[s->ended]]) show(s, s->ending[s->ended], -1);
  }
}

static void sweep_latest(Sweep *s, Column *column, int c) {
  const Places *newest = s->newest + c;
  column->seen = 0;
  if (newest->count == 0) return;
  const int64_t *row = s->rows + places_select(newest, newest->count - 1) * s->stride;
  note_newest(s->lane, column, row[MOMENT], row[EVENT + c], null_at(row, c));
}

static void sweep_label(Sweep *s) {
  Lane *lane = s->lane;
  int64_t end = s->front;
  for (int w = 0; w < lane->windows; end = s->tail[w++]) {
    for (int c = 0; c < lane->columns; c++) {
      if (lane->need[c].series || lane->need[c].last) s->tally[w].column[c].to = places_below(s->shown + c, s->front);
      if (lane->need[c].groups) {
        s->tally[w].column[c].group = minima_first(s->often + w * lane->columns + c);
      }
      if (!lane->need[c].ranges) continue;
      Column *column = s->tally[w].column + c, *before = w ? s->tally[w - 1].column + c : NULL;
      column->least = minima_over(s->least + c, s->tail[w], end, before ? before->least : INT64_MAX);
      column->greatest = ~minima_over(s->greatest + c, s->tail[w], end, before ? ~before->greatest : INT64_MAX);
    }
    lane->tally = s->tally + w;
    finish(lane, w);
  }
  lane->tally = &lane->own;
  for (int c = 0; c < lane->columns; c++) {
    if (lane->need[c].newest) sweep_latest(s, lane->own.column + c, c);
  }
  finish(lane, -1);
}

/* Say which way costs less for a key, in events touched: each label scans its longest window and what `latest` must go
 * back over nulls, or every event enters and leaves every window once. */
static int sweep_pays(const Lane *lane, const int64_t *rows, int64_t n, int64_t stride, int64_t labels) {
  if (n == 0) return 0;
  double span = (double)rows[(n - 1) * stride] - (double)rows[0] + 1.0, seen = 0.0;
  if (lane->windows) seen = (double)n * fmin(1.0, ((double)lane->window[lane->windows - 1] + (double)lane->hop) / span);
  for (int c = 0; c < lane->columns; c++) {
    if (!lane->need[c].newest) continue;
    int64_t values = 1;
    for (int64_t i = 0; i < n; i++) values += lane->state || !null_at(rows + i * stride, c);
    seen = fmax(seen, (double)n / (double)values);
  }
  double ranks = lane->listed ? 20.0 : 2.0;
  return (double)labels * seen * (lane->listed ? 3.0 : 1.0) > (double)n * (ranks + 0.75 * lane->windows);
}

/* Civil time may go back where moments go on; then a sweep cannot follow. */
static int ascending(const int64_t *at, int64_t from, int64_t to) {
  for (int64_t i = from + 1; i < to; i++) {
    if (at[i] < at[i - 1]) return 0;
  }
  return 1;
}

static int64_t scan_key(Lane *lane, const int64_t *rows, int64_t n, const Labels *labels, int64_t from, int64_t to,
                        int how, int64_t stride, int64_t *words, uint8_t *status) {
  Pool pool = {0};
  Sweep sweep = {.lane = lane, .rows = rows, .n = n, .stride = EVENT + lane->columns + 1};
  int sweeps = n && how != PLAIN && ascending(labels->at, from, to);
  sweeps = sweeps && (how == SWEEP || sweep_pays(lane, rows, n, sweep.stride, to - from));
  int64_t found = 0;
  if (sweeps && !make_sweep(&sweep, &pool)) found = NO_MEMORY;
  lane->sweep = sweeps ? &sweep : NULL;
  for (int64_t i = from; i < to && found >= 0; i++) {
    int64_t at = labels->place[i] * stride;
    begin(lane, labels->t[i], labels->at[i], words + at, status + at);
    if (labels->since) lane->since = labels->since[i];
    if (sweeps) {
      move_to(&sweep);
      sweep_label(&sweep);
    } else {
      clear_columns(lane, &lane->own);
      Run run = {rows, n, (int32_t)sweep.stride, EVENT + lane->columns};
      if (absorb_run(lane, run) == NO_MEMORY) found = NO_MEMORY;
      finish_rest(lane);
    }
    if (lane->no_memory) found = NO_MEMORY;
  }
  release(&pool);
  return found;
}

/* Return the values that folds take, as the last read or scan left them. */
const int64_t *lane_pool(const Lane *lane, int64_t *words) {
  *words = lane->pooled;
  return lane->pool;
}

/* Return the end of the keys from `first` on whose rows fit into `room` together; at least one key. */
static int64_t fitting(const int64_t *start, int64_t first, int64_t keys, int64_t room) {
  int64_t last = first + 1;
  while (last < keys && start[last + 1] - start[first] <= room) last++;
  return last;
}

/* Answer labels, sorted by (key, t, at), from event versions in any order with keys below `keys`. Results of a label are
 * written `width` words apart from those of the next.
 *
 * Keys are gathered by ranges into one piece of memory: going over all keys again and again costs less than the pages
 * for a sorted copy of everything. */
int64_t scan(Lane *lane, const Events *events, const Labels *labels, int64_t keys, int how, int64_t width,
             int64_t *words, uint8_t *status) {
  Pool pool = {0};
  int64_t stride = EVENT + lane->columns + 1, found = 0, most = 0, i = 0, end;
  int64_t *start = take(&pool, keys + 1, 8), *spare = take(&pool, keys + 1, 8), *rows = NULL;
  if (!pool.failed) {
    count_events(events, labels, keys, start);
    for (int64_t first = 0, last; first < keys; first = last) {
      last = fitting(start, first, keys, GATHERED / stride);
      if (start[last] - start[first] > most) most = start[last] - start[first];
    }
    rows = take_large(most * stride);
  }
  if (rows == NULL) found = NO_MEMORY;
  for (; !found && i < labels->n && labels->key[i] < 0; i = end) {
    for (end = i; end < labels->n && labels->key[end] == labels->key[i];) end++;
    found = scan_key(lane, rows, 0, labels, i, end, how, width, words, status);
  }
  for (int64_t first = 0, last; first < keys && i < labels->n && !found; first = last) {
    last = fitting(start, first, keys, GATHERED / stride);
    if (labels->key[i] >= last) continue;
    gather_rows(lane, events, first, last, start, spare, rows);
    for (; i < labels->n && labels->key[i] < last && !found; i = end) {
      int64_t key = labels->key[i], n = start[key + 1] - start[key], *mine = rows + (start[key] - start[first]) * stride;
      for (end = i; end < labels->n && labels->key[end] == key;) end++;
      if (!sort_rows(mine, n, stride)) found = NO_MEMORY;
      else found = scan_key(lane, mine, n, labels, i, end, how, width, words, status);
    }
  }
  for (; !found && i < labels->n; i = end) {
    for (end = i; end < labels->n && labels->key[end] == labels->key[i];) end++;
    found = scan_key(lane, rows, 0, labels, i, end, how, width, words, status);
  }
  free(rows);
  release(&pool);
  return found;
}

/* ==== Equal records ==== */

/* Hash n texts, which stand between offsets; equal ones have equal hashes. */
void hash_texts(const uint8_t *data, const int32_t *offset, int64_t n, uint64_t *hash) {
  for (int64_t i = 0; i < n; i++) {
    int64_t at = offset[i], end = offset[i + 1];
    uint64_t state = (uint64_t)(end - at) * 0x9E3779B97F4A7C15u;
    for (uint64_t word = 0; at < end; at += 8, word = 0) {
      memcpy(&word, data + at, (size_t)(end - at < 8 ? end - at : 8));
      state = mixed(state ^ word) + word;
    }
    hash[i] = mixed(state);
  }
}

/* Write at which of n texts one begins that is not above the one before it, up to `most` of them; return how many there are,
 * `most` if there may be more. */
int64_t text_falls(const uint8_t *data, const int32_t *offset, int64_t n, int64_t most, int64_t *fall) {
  int64_t found = 0;
  for (int64_t i = 1; i < n && found < most; i++) {
    int32_t before = offset[i] - offset[i - 1], length = offset[i + 1] - offset[i], both = before < length ? before : length;
    int order = memcmp(data + offset[i - 1], data + offset[i], (size_t)both);
    if (order > 0 || (order == 0 && before >= length)) fall[found++] = i;
  }
  return found;
}

/* Hash n texts, each behind the same prefix, as `core.identity.row_hash` does. */
void hash_ids(const uint8_t *prefix, int64_t length, const uint8_t *data, const int32_t *offset, int64_t n, int64_t *hash) {
  Blake begun, state;
  blake_begin(&begun);
  blake_add(&begun, prefix, length);
  for (int64_t i = 0; i < n; i++) {
    state = begun;
    blake_add(&state, data + offset[i], offset[i + 1] - offset[i]);
    hash[i] = (int64_t)(blake_end(&state) >> 1);
  }
}

/* Write the word that spells each of n texts, 0 where none does. */
void spell_texts(const uint8_t *data, const int32_t *offset, int64_t n, int64_t *word) {
  for (int64_t i = 0; i < n; i++) word[i] = spell( data + offset[i], offset[i + 1] - offset[i]);
}

/* Write the texts that n of some words spell, those at `place`, each with a NUL behind it, and where that ends; of a word
 * that is not negative only the NUL. Return how many bytes that are, or the complement of the place of the first word that is
 * negative and spells no text. */
int64_t unspell_texts(const int64_t *word, const int64_t *place, int64_t n, uint8_t *data, int64_t *end) {
  int64_t at = 0;
  for (int64_t i = 0; i < n; i++) {
    int bytes = word[place[i]] < 0 ? unspell(word[place[i]], data + at) : 0;
    if (bytes < 0) return ~place[i];
    at += bytes;
    data[at++] = 0;
    end[i] = at;
  }
  return at;
}

/* Hash n rows of three columns. */
void hash_rows(const int64_t *a, const int64_t *b, const int64_t *c, int64_t n, uint64_t *hash) {
  for (int64_t i = 0; i < n; i++) {
    hash[i] = mixed(mixed(mixed((uint64_t)a[i] + 1) ^ (uint64_t)b[i]) + (uint64_t)c[i]);
  }
}

/* Return whether two are equal of those of n hashes whose first `bits` are `share`. They are parted by their next bits, so
 * that each part's table fits the cache: twice as fast as sorting them. */
int64_t any_equal(const uint64_t *hash, int64_t n, int32_t bits, int64_t share) {
  Pool pool = {0};
  int deep = 0;
  while (n >> (bits + deep) > 8192 && deep < 16) deep++;
  int shift = 64 - bits - deep;
  int64_t parts = (int64_t)1 << deep, most = 0, size = 16, found = 0;
  uint64_t first = (uint64_t)share << deep;
  int64_t *end = take(&pool, parts + 2, 8);
#define PART_OF(h) ((bits + deep ? (h) >> shift : 0) - first)
  for (int64_t i = 0; end && i < n; i++) {
    uint64_t p = PART_OF(hash[i]);
    if (p < (uint64_t)parts) end[p + 2]++;
  }
  for (int64_t p = 1; end && p <= parts; p++) {
    if (end[p + 1] > most) most = end[p + 1];
    end[p + 1] += end[p];
  }
  while (size < 2 * most) size *= 2;
  uint64_t *parted = end ? (uint64_t *)take_large(end[parts + 1]) : NULL, *table = take(&pool, size, 8);
  if (pool.failed || parted == NULL) found = NO_MEMORY;
  for (int64_t i = 0; !found && i < n; i++) {
    uint64_t p = PART_OF(hash[i]);
    if (p < (uint64_t)parts) parted[end[p + 1]++] = hash[i];
  }
#undef PART_OF
  for (int64_t p = 0; p < parts && !found; p++) {
    memset(table, 0, (size_t)size * 8);
    int zero = 0;
    for (int64_t i = end[p]; i < end[p + 1] && !found; i++) {
      uint64_t x = parted[i];
      int64_t slot = (int64_t)(x & (uint64_t)(size - 1));
      if (x == 0) found = zero++; /* an empty slot is zero */
      else {
        while (table[slot] && table[slot] != x) slot = (slot + 1) & (size - 1);
        found = table[slot] == x;
        table[slot] = x;
      }
    }
  }
  free(parted);
  release(&pool);
  return found;
}

/* ==== Numbers for values ==== */

typedef struct {
  const int64_t *value;
  const uint8_t *valid; /* a bit for each value, from `bit` on; NULL where all are there */
  int64_t n, bit;
} Chunk;

/* Return the slot of a value, or the one where it belongs. */
static uint64_t slot_of(const uint32_t *table, int64_t size, const int64_t *different, int64_t value) {
  uint64_t slot = mixed((uint64_t)value) & (uint64_t)(size - 1);
  while (table[slot] && different[table[slot] - 1] != value) slot = (slot + 1) & (uint64_t)(size - 1);
  return slot;
}

/* Number the values of some chunks in the order in which they first come, up to 2^32 - 1 different ones; the number of what
 * is not there is -1. Return how many different ones there are, or NO_MEMORY. */
int64_t number_values(const Chunk *chunk, int64_t chunks, int64_t *number, int64_t *different) {
  int64_t size = 1 << 12, count = 0;
  uint32_t *table = calloc((size_t)size, sizeof *table); /* numbers from 1 on */
  for (const Chunk *end = chunk + chunks; table && chunk < end; chunk++) {
    for (int64_t i = 0; table && i < chunk->n; i++, number++) {
      int64_t bit = chunk->bit + i, value = chunk->value[i];
      *number = -1;
      if (chunk->valid && !(chunk->valid[bit >> 3] >> (bit & 7) & 1)) continue;
      uint64_t slot = slot_of(table, size, different, value);
      if (table[slot] == 0) {
        different[count] = value;
        table[slot] = (uint32_t)++count;
      }
      *number = table[slot] - 1;
      if (2 * count < size) continue;
      free(table);
      size *= 2;
      table = count < UINT32_MAX ? calloc((size_t)size, sizeof *table) : NULL;
      for (int64_t k = 0; table && k < count; k++) table[slot_of(table, size, different, different[k])] = (uint32_t)(k + 1);
    }
  }
  if (table == NULL) return NO_MEMORY;
  free(table);
  return count;
}
