// A fake OpenAI upstream for the bench: one thread, epoll, nothing but libc.
//
//   upstream [port]        listens on 127.0.0.1 (default 18700)
//
// POST …/chat/completions answers what answer.h says. The model name steers it: "fake-<chunks>x<pace ms>[b<events>]".
//   fake-64x0     64 tokens, all in one write           fake-64x20   64 tokens, one each 20 ms, the first at once
//   fake-64x0b4   64 tokens, four events a write
// Every event is one HTTP chunk, as the real ones send it. A usage event comes only to who asked for it.
// GET /stats tells what really reached it; the ledger of a gateway is compared with that.
//
// It is not a conformance server: it reads only what it needs and trusts its clients to be well-formed.
#define _GNU_SOURCE
#include "answer.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { READ_AT_LEAST = 16384, MAX_CHUNKS = 1000, MAX_EVENTS = 256 };

struct bytes {
  char *data;
  size_t start, end, size; // live bytes are [start, end)
};

struct conn {
  int fd;
  bool waits_for_write, close_after, usage_wanted;
  struct bytes in, out;
  int chunks, sent, per_write; // chunks > 0: a stream is under way
  int64_t pace, due;           // nanoseconds; due = when the next token of a paced stream is to be written
  size_t place;                // in the heap of paced streams, counted from 1; 0 = not in it
  struct conn *next_dead;
};

static struct {
  unsigned long plain, streams, completed, aborted, other, input_tokens, output_tokens;
} stats;

static int poll_fd, timer_fd;
static struct conn **heap; // of paced streams, soonest first, from index 1
static size_t heap_length, heap_size;
static struct conn *dead; // freed after the batch of events that may still name them

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

// Bytes -------------------------------------------------------------------------------------------------------------

static char *reserve(struct bytes *b, size_t more) {
  if (b->start == b->end) b->start = b->end = 0;
  if (b->end + more > b->size && b->start) {
    memmove(b->data, b->data + b->start, b->end - b->start);
    b->end -= b->start;
    b->start = 0;
  }
  if (b->end + more > b->size) {
    b->size = (b->end + more) * 2;
    b->data = realloc(b->data, b->size);
    if (!b->data) abort();
  }
  return b->data + b->end;
}

static void append(struct bytes *b, const char *data, size_t length) {
  memcpy(reserve(b, length), data, length);
  b->end += length;
}

static size_t framed(char *to, const char *event) { // one event as one HTTP chunk
  size_t length = strlen(event);
  int head = sprintf(to, "%zx\r\n", length);
  memcpy(to + head, event, length);
  memcpy(to + head + length, "\r\n", 2);
  return head + length + 2;
}

static void digits(char *to, int count, uint64_t value) {
  while (count-- > 0) {
    to[count] = '0' + value % 10;
    value /= 10;
  }
}

// The events of a stream, framed once at start ----------------------------------------------------------------------

#define EVENT(choices, rest)                                                                                           \
  "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\"model\":\"fake\","  \
  "\"system_fingerprint\":\"fp_bench\",\"choices\":[" choices "]" rest "}\n\n"
#define CHOICE(delta, reason) "{\"index\":0,\"delta\":{" delta "},\"logprobs\":null,\"finish_reason\":" reason "}"

static char head_event[512], token_event[512], finish_event[512], done_event[64];
static size_t head_length, token_length, finish_length, done_length, token_at;

static const char stream_head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                                  "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";

static void prepare(void) {
  head_length = framed(head_event, EVENT(CHOICE("\"role\":\"assistant\",\"content\":\"\"", "null"), ""));
  token_length = framed(token_event, EVENT(CHOICE("\"content\":\"" TOKEN_BLANK "\"", "null"), ""));
  finish_length = framed(finish_event, EVENT(CHOICE("", "\"stop\""), ""));
  done_length = framed(done_event, "data: [DONE]\n\n");
  token_at = (char *)memmem(token_event, token_length, TOKEN_BLANK, strlen(TOKEN_BLANK)) - token_event;
}

static void put_token(struct conn *c, const char *time_digits) {
  char *to = reserve(&c->out, token_length);
  memcpy(to, token_event, token_length);
  memcpy(to + token_at + TOKEN_TIME_AT, time_digits, TOKEN_TIME_DIGITS);
  digits(to + token_at + TOKEN_PLACE_AT, TOKEN_PLACE_DIGITS, c->sent);
  c->out.end += token_length;
  c->sent++;
}

static void put_end(struct conn *c) {
  append(&c->out, finish_event, finish_length);
  if (c->usage_wanted) {
    char event[512], chunk[600];
    snprintf(event, sizeof event, EVENT("", ",\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%d}"),
             INPUT_TOKENS, c->sent, INPUT_TOKENS + c->sent);
    append(&c->out, chunk, framed(chunk, event));
  }
  append(&c->out, done_event, done_length);
  append(&c->out, "0\r\n\r\n", 5);
}

// Sockets -----------------------------------------------------------------------------------------------------------

static void watch(struct conn *c, bool writable) {
  c->waits_for_write = writable;
  struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP | (writable ? EPOLLOUT : 0), .data.ptr = c};
  epoll_ctl(poll_fd, EPOLL_CTL_MOD, c->fd, &e);
}

static bool flush(struct conn *c) { // false: the peer is gone
  while (c->out.start < c->out.end) {
    ssize_t n = send(c->fd, c->out.data + c->out.start, c->out.end - c->out.start, MSG_NOSIGNAL);
    if (n < 0) {
      if (errno != EAGAIN) return false;
      if (!c->waits_for_write) watch(c, true);
      return true;
    }
    c->out.start += n;
  }
  if (c->waits_for_write) watch(c, false);
  return true;
}

// Paced streams: a binary heap by due time and one timer armed for its top --------------------------------------------

static void heap_put(size_t at, struct conn *c) {
  heap[at] = c;
  c->place = at;
}

static void heap_settle(size_t at) { // moves the entry up or down to where it belongs
  struct conn *c = heap[at];
  for (; at > 1 && heap[at / 2]->due > c->due; at /= 2) heap_put(at, heap[at / 2]);
  for (size_t child; (child = at * 2) <= heap_length; at = child) {
    if (child < heap_length && heap[child + 1]->due < heap[child]->due) child++;
    if (heap[child]->due >= c->due) break;
    heap_put(at, heap[child]);
  }
  heap_put(at, c);
}

static void heap_add(struct conn *c) {
  if (heap_length + 2 > heap_size) {
    heap_size = heap_size ? heap_size * 2 : 256;
    heap = realloc(heap, heap_size * sizeof *heap);
    if (!heap) abort();
  }
  heap_put(++heap_length, c);
  heap_settle(heap_length);
}

static void heap_remove(struct conn *c) {
  size_t at = c->place;
  c->place = 0;
  struct conn *last = heap[heap_length--];
  if (last == c) return;
  heap_put(at, last);
  heap_settle(at);
}

static void arm_timer(void) {
  static int64_t armed; // for when; 0 = off
  int64_t due = heap_length ? heap[1]->due : 0;
  if (due == armed) return;
  armed = due;
  struct itimerspec when = {.it_value = {.tv_sec = due / 1000000000, .tv_nsec = due % 1000000000}};
  timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

static void drop(struct conn *c) {
  if (c->chunks || c->out.start < c->out.end) stats.aborted++;
  if (c->place) heap_remove(c);
  close(c->fd);
  c->fd = -1;
  c->next_dead = dead;
  dead = c;
}

static void bury(void) {
  while (dead) {
    struct conn *c = dead;
    dead = c->next_dead;
    free(c->in.data);
    free(c->out.data);
    free(c);
  }
}

// Writes up to `count` tokens, and the end after the last one. False: the peer is gone.
static bool advance(struct conn *c, int count) {
  char time_digits[TOKEN_TIME_DIGITS]; // one reading for what leaves in one write
  digits(time_digits, TOKEN_TIME_DIGITS, now_ns());
  while (count-- > 0 && c->sent < c->chunks) put_token(c, time_digits);
  if (c->sent == c->chunks) {
    put_end(c);
    stats.completed++;
    stats.input_tokens += INPUT_TOKENS;
    stats.output_tokens += c->chunks;
    c->chunks = 0;
    if (c->place) heap_remove(c);
  }
  return flush(c);
}

static void run_due(void) {
  uint64_t ignored;
  if (read(timer_fd, &ignored, sizeof ignored) < 0) return; // it was armed anew since it rang
  while (heap_length && heap[1]->due <= now_ns()) {
    struct conn *c = heap[1];
    if (!advance(c, 1)) {
      drop(c);
    } else if (c->place) {
      c->due += c->pace; // from the plan, not from now: a late token does not delay the ones after it
      heap_settle(c->place);
    }
  }
}

// Requests ----------------------------------------------------------------------------------------------------------

static void put_plain(struct conn *c, const char *status, const char *body, bool with_body) {
  char head[256];
  size_t length = strlen(body);
  append(&c->out, head,
         sprintf(head, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n", status, length));
  if (with_body) append(&c->out, body, length);
}

static const char *after_key(const char *body, size_t length, const char *key) { // past `"key":` and blanks
  const char *at = memmem(body, length, key, strlen(key));
  if (!at) return "";
  at += strlen(key);
  while (at < body + length && (*at == ' ' || *at == ':')) at++;
  return at;
}

static bool answer_chat(struct conn *c, const char *body, size_t length) {
  int chunks = 64, pace_ms = 0, per_write = 0;
  const char *model = memmem(body, length, "\"fake-", 6);
  if (model && sscanf(model + 6, "%dx%db%d", &chunks, &pace_ms, &per_write) < 2) chunks = 64, pace_ms = 0;
  if (chunks < 1 || chunks > MAX_CHUNKS) chunks = 64;
  if (strncmp(after_key(body, length, "\"stream\""), "true", 4) != 0) {
    stats.plain++;
    stats.completed++;
    stats.input_tokens += INPUT_TOKENS;
    stats.output_tokens += OUTPUT_TOKENS_PLAIN;
    char text[2048];
    snprintf(text, sizeof text,
             "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1760000000,\"model\":\"fake\","
             "\"system_fingerprint\":\"fp_bench\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
             "\"content\":\"" ANSWER_TEXT "\",\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"stop\"}],"
             "\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%d}}",
             INPUT_TOKENS, OUTPUT_TOKENS_PLAIN, INPUT_TOKENS + OUTPUT_TOKENS_PLAIN);
    put_plain(c, "200 OK", text, true);
    return true;
  }
  stats.streams++;
  c->chunks = chunks;
  c->sent = 0;
  c->usage_wanted = strncmp(after_key(body, length, "\"include_usage\""), "true", 4) == 0;
  append(&c->out, stream_head, sizeof stream_head - 1);
  append(&c->out, head_event, head_length);
  if (!pace_ms) {
    while (c->chunks)
      if (!advance(c, per_write > 0 ? per_write : c->chunks)) return false;
    return true;
  }
  c->pace = pace_ms * INT64_C(1000000);
  c->due = now_ns() + c->pace;
  heap_add(c);
  return advance(c, 1);
}

static bool answer_rest(struct conn *c, const char *line) {
  char text[512];
  bool get = strncmp(line, "GET ", 4) == 0;
  if (strncmp(line, "GET /stats", 10) == 0) {
    snprintf(text, sizeof text,
             "{\"plain\":%lu,\"streams\":%lu,\"completed\":%lu,\"aborted\":%lu,\"other\":%lu,\"input_tokens\":%lu,"
             "\"output_tokens\":%lu}\n",
             stats.plain, stats.streams, stats.completed, stats.aborted, stats.other, stats.input_tokens,
             stats.output_tokens);
    put_plain(c, "200 OK", text, true);
    return true;
  }
  stats.other++;
  if (strstr(line, "/models"))
    put_plain(c, "200 OK", "{\"object\":\"list\",\"data\":[{\"id\":\"fake-64x0\",\"object\":\"model\"}]}", true);
  else if (get || strncmp(line, "HEAD ", 5) == 0)
    put_plain(c, "200 OK", "{\"status\":\"ok\"}", get);
  else
    put_plain(c, "404 Not Found", "{\"error\":{\"message\":\"the fake upstream has no such path\"}}", true);
  return true;
}

// Decodes a chunked body in place. The length of what it took, 0 while it is incomplete.
static size_t unchunk(char *body, size_t length, size_t *decoded) {
  for (int pass = 0; pass < 2; pass++) { // first look whether all of it is there, then move
    char *from = body, *to = body, *end = body + length;
    for (;;) {
      char *rest, *line = memmem(from, end - from, "\r\n", 2);
      if (!line) return 0;
      size_t n = strtoul(from, &rest, 16);
      if ((size_t)(end - line) < n + 4) return 0;
      if (pass) memmove(to, line + 2, n);
      to += n;
      from = line + 2 + n + 2;
      if (!n) break;
    }
    *decoded = to - body;
    if (pass) return from - body;
  }
  return 0;
}

// Answers every whole request that has arrived. False: close the connection.
static bool answer_waiting(struct conn *c) {
  while (!c->chunks && c->in.start < c->in.end) {
    char *head = c->in.data + c->in.start;
    size_t live = c->in.end - c->in.start;
    char *blank = memmem(head, live, "\r\n\r\n", 4);
    if (!blank) return true;
    size_t length = 0;
    bool chunked = false;
    for (char *line = head; line < blank; line = (char *)memchr(line, '\n', blank + 2 - line) + 1) {
      if (!strncasecmp(line, "content-length:", 15)) length = strtoul(line + 15, NULL, 10);
      if (!strncasecmp(line, "transfer-encoding: chunked", 26)) chunked = true;
      if (!strncasecmp(line, "connection: close", 17)) c->close_after = true;
    }
    char *body = blank + 4;
    size_t arrived = live - (body - head), taken = length;
    if (chunked) {
      taken = unchunk(body, arrived, &length);
      if (!taken) return true;
    } else if (arrived < length) {
      return true;
    }
    *blank = 0;
    char *line_end = strstr(head, "\r\n");
    if (line_end) *line_end = 0;
    bool fine = strstr(head, "/chat/completions") ? answer_chat(c, body, length) : answer_rest(c, head);
    c->in.start += (body - head) + taken;
    if (!fine || !flush(c)) return false;
  }
  return !(c->close_after && !c->chunks && c->out.start == c->out.end);
}

static bool receive(struct conn *c) {
  for (;;) {
    char *to = reserve(&c->in, READ_AT_LEAST);
    ssize_t n = recv(c->fd, to, READ_AT_LEAST, 0);
    if (n == 0) return false;
    if (n < 0) return errno == EAGAIN;
    c->in.end += n;
    if (n < READ_AT_LEAST) return true;
  }
}

static void serve(struct conn *c, uint32_t events) {
  if (c->fd < 0) return; // dropped earlier in this batch
  bool alive = !(events & (EPOLLHUP | EPOLLERR));
  if (alive && (events & EPOLLIN)) alive = receive(c);
  if (alive && (events & EPOLLOUT)) alive = flush(c);
  if (alive) alive = answer_waiting(c);
  if (!alive) drop(c);
}

static void accept_all(int listener) {
  int fd, on = 1;
  while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct conn *c = calloc(1, sizeof *c);
    if (!c) abort();
    c->fd = fd;
    struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = c};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &e);
  }
}

int main(int argc, char **argv) {
  int port = argc > 1 ? atoi(argv[1]) : 18700, on = 1;
  signal(SIGPIPE, SIG_IGN);
  prctl(PR_SET_TIMERSLACK, 1); // the default of 50 µs would show in the gaps
  prepare();
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
    perror("upstream");
    return 1;
  }
  poll_fd = epoll_create1(EPOLL_CLOEXEC);
  timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = &listener};
  epoll_ctl(poll_fd, EPOLL_CTL_ADD, listener, &e);
  e.data.ptr = &timer_fd;
  epoll_ctl(poll_fd, EPOLL_CTL_ADD, timer_fd, &e);
  for (struct epoll_event events[MAX_EVENTS];;) {
    int n = epoll_wait(poll_fd, events, MAX_EVENTS, -1);
    for (int i = 0; i < n; i++) {
      if (events[i].data.ptr == &listener) accept_all(listener);
      else if (events[i].data.ptr == &timer_fd) run_due();
      else serve(events[i].data.ptr, events[i].events);
    }
    bury();
    arm_timer();
  }
}
