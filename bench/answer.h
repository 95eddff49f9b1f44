// What the fake upstream answers and the load generator expects: the one agreement between the two programs.
#ifndef BENCH_ANSWER_H
#define BENCH_ANSWER_H

// The text of a non-streamed answer: plain ASCII without quotes, so that no JSON writer has a reason to change it.
#define ANSWER_TEXT                                                                                                    \
  "A patchbay is a panel of sockets. Every device of a studio ends in one of them, and a short cable decides which "  \
  "device hears which. Nothing is soldered, so the room can be wired anew between two songs. The panel itself makes " \
  "no sound: it must not hum, must not lose a signal and must not delay one. Engineers label each socket twice, with " \
  "the name of the device and with the place of its twin on the back, because a label is what one reads in the dark. " \
  "Good panels outlive every device that was ever plugged into them."

// One token of a stream is "#<16 digits>:<3 digits># ": CLOCK_MONOTONIC nanoseconds at which the upstream wrote it,
// then its place in the stream. Both programs run on one machine, so one clock gives one-way delays.
#define TOKEN_BLANK "#0000000000000000:000# "
#define TOKEN_TIME_AT 1
#define TOKEN_TIME_DIGITS 16
#define TOKEN_PLACE_AT 18
#define TOKEN_PLACE_DIGITS 3
#define TOKEN_LENGTH 22 // without the blank at the end

#define INPUT_TOKENS 180
#define OUTPUT_TOKENS_PLAIN 100 // a stream counts its tokens instead

#endif
