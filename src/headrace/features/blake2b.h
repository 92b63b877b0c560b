/* BLAKE2b of up to 64 bits of digest without a key, as RFC 7693 defines it: what Python's hashlib.blake2b(digest_size=8)
 * returns. Numbers are little-endian. */
#include <stdint.h>
#include <string.h>

static const uint64_t BLAKE_IV[8] = {
    0x6a09e667f3bcc908u, 0xbb67ae8584caa73bu, 0x3c6ef372fe94f82bu, 0xa54ff53a5f1d36f1u,
    0x510e527fade682d1u, 0x9b05688c2b3e6c1fu, 0x1f83d9abfb41bd6bu, 0x5be0cd19137e2179u,
};

static const uint8_t BLAKE_SIGMA[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
};

typedef struct {
  uint64_t h[8], length;
  uint8_t block[128];
  int held;
} Blake;

static uint64_t turned(uint64_t x, int n) { return x >> n | x << (64 - n); }

static void blake_mix(uint64_t *v, int a, int b, int c, int d, uint64_t x, uint64_t y) {
  v[a] += v[b] + x;
  v[d] = turned(v[d] ^ v[a], 32);
  v[c] += v[d];
  v[b] = turned(v[b] ^ v[c], 24);
  v[a] += v[b] + y;
  v[d] = turned(v[d] ^ v[a], 16);
  v[c] += v[d];
  v[b] = turned(v[b] ^ v[c], 63);
}

static void blake_compress(Blake *s, int last) {
  uint64_t v[16], m[16];
  memcpy(m, s->block, 128);
  memcpy(v, s->h, 64);
  memcpy(v + 8, BLAKE_IV, 64);
  v[12] ^= s->length; /* texts end before 2^64 bytes */
  if (last) v[14] = ~v[14];
  for (int round = 0; round < 12; round++) {
    const uint8_t *at = BLAKE_SIGMA[round % 10];
    for (int i = 0; i < 4; i++) blake_mix(v, i, 4 + i, 8 + i, 12 + i, m[at[2 * i]], m[at[2 * i + 1]]);
    for (int i = 0; i < 4; i++) {
      int b = 4 + (i + 1) % 4, c = 8 + (i + 2) % 4, d = 12 + (i + 3) % 4;
      blake_mix(v, i, b, c, d, m[at[8 + 2 * i]], m[at[9 + 2 * i]]);
    }
  }
  for (int i = 0; i < 8; i++) s->h[i] ^= v[i] ^ v[8 + i];
  s->held = 0;
}

static void blake_begin(Blake *s) {
  memset(s, 0, sizeof *s);
  memcpy(s->h, BLAKE_IV, 64);
  s->h[0] ^= 0x01010000u ^ 8u;
}

static void blake_add(Blake *s, const uint8_t *data, int64_t n) {
  while (n > 0) {
    if (s->held == 128) blake_compress(s, 0);
    int part = n < 128 - s->held ? (int)n : 128 - s->held;
    memcpy(s->block + s->held, data, (size_t)part);
    s->held += part;
    s->length += (uint64_t)part;
    data += part;
    n -= part;
  }
}

/* Return the digest's 8 bytes as a big-endian number. */
static uint64_t blake_end(Blake *s) {
  uint64_t x;
  memset(s->block + s->held, 0, (size_t)(128 - s->held));
  blake_compress(s, 1);
  x = s->h[0];
  x = (x & 0x00ff00ff00ff00ffu) << 8 | (x >> 8 & 0x00ff00ff00ff00ffu);
  x = (x & 0x0000ffff0000ffffu) << 16 | (x >> 16 & 0x0000ffff0000ffffu);
  return x << 32 | x >> 32;
}
