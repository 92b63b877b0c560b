/* Texts that a word spells, as `core/texts.py` says: a negative word, 3 bits for the alphabet, 60 for the characters. */
#ifndef HEADRACE_SPELL_H
#define HEADRACE_SPELL_H

#include <stdint.h>
#include <string.h>

enum { SPELLED = 7, LONGEST = 15, ALPHABETS = 4 };

static const struct {
  int bits, most;
  const char *letters;
} ALPHABET[ALPHABETS] = {
    {6, 10, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-"},
    {6, 10, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"},
    {5, 12, "abcdefghijklmnopqrstuvwxyz-_. /"},
    {4, 15, "0123456789-.:/+"},
};

static uint8_t CODE[ALPHABETS][256]; /* of each byte, 0 where the alphabet lacks it */

__attribute__((constructor)) static void codes_make(void) {
  for (int a = 0; a < ALPHABETS; a++) {
    for (int i = 0; ALPHABET[a].letters[i]; i++) CODE[a][(uint8_t)ALPHABET[a].letters[i]] = (uint8_t)(i + 1);
  }
}

static uint64_t tagged(int alphabet) { return (uint64_t)1 << 63 | (uint64_t)alphabet << 60; }

/* Return the word that spells n bytes, or 0 if none does. */
static int64_t spell(const uint8_t *text, int64_t n) {
  uint64_t word = 0;
  if (n <= SPELLED) {
    if (n) memcpy(&word, text, (size_t)n); /* of nothing there may be no address */
    return (int64_t)(word | (uint64_t)n << 56 | tagged(1));
  }
  for (int a = 0; a < ALPHABETS; a++, word = 0) {
    int64_t i = n <= ALPHABET[a].most ? n : 0;
    while (i > 0 && CODE[a][text[i - 1]]) word = word << ALPHABET[a].bits | CODE[a][text[--i]];
    if (i == 0 && word) return (int64_t)(word | tagged(a + 2));
  }
  return 0;
}

/* Write the text that a word spells, and return its bytes; -1 if it spells none. There is room for LONGEST bytes. */
static int unspell(int64_t word, uint8_t *text) {
  int number = (int)((uint64_t)word >> 60 & 7), n = 0;
  if (word >= 0 || number == 0 || number > ALPHABETS + 1) return -1;
  if (number == 1) {
    n = (int)(word >> 56 & 15);
    if (n > SPELLED) return -1;
    memcpy(text, &word, (size_t)n);
  } else {
    int bits = ALPHABET[number - 2].bits;
    for (int64_t at = 0; at < 60; at += bits, n++) {
      int code = (int)(word >> at & ((1 << bits) - 1));
      if (code == 0) break;
      text[n] = (uint8_t)ALPHABET[number - 2].letters[code - 1];
    }
  }
  return spell(text, n) == word ? n : -1;
}

#endif
