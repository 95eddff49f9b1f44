// A closed-loop load generator for the bench that checks every answer: one thread, epoll, nothing but libc.
//
//   load --to 127.0.0.1:8080 --body request.json [--path /v1/chat/completions] [--header 'Name: value']…
//        [--connections 32] [--seconds 5] [--warm-up 1] [--tokens 64] [--requests N] [--spread-ms 0] [--gaps] [--timeout 30]
//
// Each connection sends its next request when the last answer has been checked. `--tokens 0` expects the whole text of
// answer.h; otherwise a stream of so many tokens in their order, a "stop", "[DONE]" and a proper end of the body.
// `--requests` ends the run after so many instead of by the clock. `--spread-ms` starts the connections one after
// another over that time. `--gaps` also keeps the time between tokens and from upstream to here, which costs memory.
//
// After the window no request is begun, and those under way are waited for: what was sent is what was answered, so the
// counts of upstream, gateway and generator can be compared to the last one. One JSON object on stdout:
//   answers, failures   checked answers and all others, over the whole run
//   rps, tokens_per_s   answers that ended, tokens that arrived inside the window
//   latency_us, first_token_us (begun inside the window), gap_us, hop_us (upstream wrote a token → it was read here)
//   failed              failures by kind, `sample` the first of them
#define _GNU_SOURCE
#include "answer.h"
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { READ_SIZE = 1 << 16, MAX_EVENTS = 256, POLL_MS = 1 };
enum failure { STATUS, CONTENT, COUNT, ORDER, TERMINATOR, TRANSPORT, TIMEOUT, FAILURES };
static const char *const failure_names[] = {"status", "content", "count", "order", "terminator", "transport", "timeout"};

enum phase { WAITING, HEAD, LENGTH_BODY, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER, EOF_BODY };

struct text {
  char *data;
  size_t length, size;
};

struct conn {
  int fd;
  enum phase phase;
  bool keep_alive, out_of_order;
  int status, tokens;
  int64_t begun, last_token, start_at;
  size_t left, scanned;   // bytes of the body or chunk still to come; how far the body was searched for tokens
  struct text head, body; // head also gathers a chunk's size line
};

struct samples {
  float *values;
  size_t length, size;
};

static struct sockaddr_in target;
static const char *path = "/v1/chat/completions";
static int connections = 32, tokens_wanted, spread_ms;
static double seconds = 5, warm_up = 1, timeout = 30;
static bool keep_gaps;
static unsigned long request_limit, sent, answers, in_window, window_tokens, failed[FAILURES];
static int under_way, poll_fd;
static int64_t window_start, window_end;
static struct text request;
static struct samples latency, first_token, gap, hop;
static char sample[400];

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static void append(struct text *t, const char *data, size_t length) {
  if (t->length + length + 1 > t->size) {
    t->size = (t->length + length + 1) * 2;
    t->data = realloc(t->data, t->size);
    if (!t->data) abort();
  }
  memcpy(t->data + t->length, data, length);
  t->length += length;
  t->data[t->length] = 0;
}

// Samples -----------------------------------------------------------------------------------------------------------

static void note(struct samples *s, int64_t ns) {
  if (s->length == s->size) {
    s->size = s->size ? s->size * 2 : 65536;
    s->values = realloc(s->values, s->size * sizeof *s->values);
    if (!s->values) abort();
  }
  s->values[s->length++] = ns / 1e3;
}

static int by_value(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x > y) - (x < y);
}

static void print_samples(const char *name, struct samples *s) {
  if (!s->length) return;
  qsort(s->values, s->length, sizeof *s->values, by_value);
  double sum = 0;
  for (size_t i = 0; i < s->length; i++) sum += s->values[i];
  printf(",\"%s\":{\"n\":%zu,\"mean\":%.1f,\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"max\":%.1f}", name, s->length,
         sum / s->length, s->values[s->length / 2], s->values[s->length * 9 / 10], s->values[s->length * 99 / 100],
         s->values[s->length - 1]);
}

// One request -------------------------------------------------------------------------------------------------------

static bool inside(int64_t t) { return t >= window_start && t <= window_end; }

static void hang_up(struct conn *c) {
  if (c->fd >= 0) close(c->fd);
  c->fd = -1;
}

static bool dial(struct conn *c) {
  int on = 1;
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connect(c->fd, (struct sockaddr *)&target, sizeof target)) {
    hang_up(c);
    return false;
  }
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
  epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &e);
  return true;
}

static void fail(struct conn *c, enum failure why) {
  failed[why]++;
  if (!sample[0]) {
    int n = snprintf(sample, sizeof sample, "%s, status %d, %d tokens: ", failure_names[why], c->status, c->tokens);
    size_t from = c->body.length > 240 && why != STATUS ? c->body.length - 240 : 0;
    for (size_t i = from; i < c->body.length && n < (int)sizeof sample - 1; i++) {
      char x = c->body.data[i];
      sample[n++] = x < ' ' || x > '~' || x == '"' || x == '\\' ? '\'' : x;
    }
  }
}

static bool may_begin(int64_t t) { return t < window_end && !(request_limit && sent >= request_limit); }

static void rest(struct conn *c, int64_t until) { // until: when to try again; a connection that is over never does
  c->phase = WAITING;
  c->start_at = until;
}

static void begin(struct conn *c) {
  int64_t t = now_ns();
  if (!may_begin(t)) {
    rest(c, INT64_MAX);
    return;
  }
  if (c->fd < 0 && !dial(c)) {
    fail(c, TRANSPORT);
    rest(c, t + 50000000);
    return;
  }
  c->phase = HEAD;
  c->keep_alive = true;
  c->out_of_order = false;
  c->status = c->tokens = 0;
  c->scanned = c->left = c->head.length = c->body.length = 0;
  c->last_token = 0;
  c->begun = t;
  sent++;
  under_way++;
  // Blocking: a request is far smaller than a socket's buffer.
  if (send(c->fd, request.data, request.length, MSG_NOSIGNAL) != (ssize_t)request.length) {
    fail(c, TRANSPORT);
    under_way--;
    hang_up(c);
    rest(c, t + 10000000);
  }
}

static bool ends_with_done(const struct text *body) {
  static const char done[] = "data: [DONE]";
  size_t end = body->length;
  while (end && (body->data[end - 1] == '\n' || body->data[end - 1] == '\r')) end--;
  return end >= sizeof done - 1 && !memcmp(body->data + end - (sizeof done - 1), done, sizeof done - 1);
}

static bool has(const struct text *body, const char *what) { return memmem(body->data, body->length, what, strlen(what)); }

static bool stopped(const struct text *body) { // near the end in either form of answer; some writers put a blank after ':'
  struct text tail = *body;
  size_t skip = body->length > 2048 ? body->length - 2048 : 0;
  tail.data += skip;
  tail.length -= skip;
  return has(&tail, "\"finish_reason\":\"stop\"") || has(&tail, "\"finish_reason\": \"stop\"");
}

static void finish(struct conn *c, bool whole) {
  int64_t t = now_ns();
  bool fine = false;
  under_way--;
  if (!whole) fail(c, c->phase == HEAD ? TRANSPORT : TERMINATOR);
  else if (c->status != 200) fail(c, STATUS);
  else if (!tokens_wanted && !has(&c->body, ANSWER_TEXT)) fail(c, CONTENT);
  else if (tokens_wanted && c->tokens != tokens_wanted) fail(c, COUNT);
  else if (c->out_of_order) fail(c, ORDER);
  else if (tokens_wanted && !ends_with_done(&c->body)) fail(c, TERMINATOR);
  else if (!stopped(&c->body)) fail(c, CONTENT);
  else fine = true;
  if (fine) {
    answers++;
    if (inside(t)) {
      in_window++;
      if (c->begun >= window_start) note(&latency, t - c->begun);
    }
  }
  if (!fine || !c->keep_alive) hang_up(c);
  if (fine) begin(c);
  else rest(c, t + 1000000); // a broken gateway is not to be hammered
}

// Reading -----------------------------------------------------------------------------------------------------------

static int64_t number(const char *at, int count) { // -1: not digits
  int64_t value = 0;
  for (; count-- > 0; at++) {
    if (*at < '0' || *at > '9') return -1;
    value = value * 10 + (*at - '0');
  }
  return value;
}

static void find_tokens(struct conn *c) {
  int64_t t = 0;
  const char *data = c->body.data;
  while (c->scanned < c->body.length) {
    const char *at = memchr(data + c->scanned, '#', c->body.length - c->scanned);
    if (!at) {
      c->scanned = c->body.length;
      return;
    }
    c->scanned = at - data;
    if (c->scanned + TOKEN_LENGTH > c->body.length) return;
    int64_t written = number(at + TOKEN_TIME_AT, TOKEN_TIME_DIGITS);
    int64_t place = number(at + TOKEN_PLACE_AT, TOKEN_PLACE_DIGITS);
    if (written < 0 || place < 0) {
      c->scanned++;
      continue;
    }
    c->scanned += TOKEN_LENGTH;
    if (!t) t = now_ns();
    if (place != c->tokens) c->out_of_order = true;
    if (inside(t)) {
      window_tokens++;
      if (!c->tokens && c->begun >= window_start) note(&first_token, t - c->begun);
      if (keep_gaps) {
        if (c->tokens) note(&gap, t - c->last_token);
        note(&hop, t - written);
      }
    }
    c->tokens++;
    c->last_token = t;
  }
}

static void read_head(struct conn *c) {
  c->status = c->head.length > 12 ? atoi(c->head.data + 9) : 0;
  c->phase = EOF_BODY;
  for (char *line = c->head.data; line; line = strchr(line, '\n')) {
    if (*line == '\n') line++;
    if (!strncasecmp(line, "content-length:", 15) && c->phase == EOF_BODY) {
      c->left = strtoul(line + 15, NULL, 10);
      c->phase = LENGTH_BODY;
    }
    if (!strncasecmp(line, "transfer-encoding: chunked", 26)) c->phase = CHUNK_SIZE;
    if (!strncasecmp(line, "connection: close", 17)) c->keep_alive = false;
  }
  if (c->phase == EOF_BODY) c->keep_alive = false;
  c->head.length = 0;
}

// Takes one line, or the part of it that has arrived, into c->head; *complete tells whether c->head now ends with `end`.
static size_t gather(struct conn *c, const char *data, size_t length, const char *end, bool *complete) {
  const char *newline = memchr(data, '\n', length);
  size_t taken = newline ? (size_t)(newline + 1 - data) : length, end_length = strlen(end);
  append(&c->head, data, taken);
  *complete = c->head.length >= end_length && !memcmp(c->head.data + c->head.length - end_length, end, end_length);
  return taken;
}

// Feeds what arrived through the phases of one answer. The generator never pipelines, so bytes after its end are wrong.
static void feed(struct conn *c, const char *data, size_t length) {
  bool complete, ended = false;
  while (length && !ended) {
    size_t n = length;
    switch (c->phase) {
    case WAITING:
      hang_up(c); // bytes that nobody asked for
      return;
    case HEAD:
      n = gather(c, data, length, "\r\n\r\n", &complete);
      if (complete) {
        read_head(c);
        ended = c->phase == LENGTH_BODY && !c->left;
      }
      break;
    case CHUNK_SIZE:
      n = gather(c, data, length, "\r\n", &complete);
      if (complete) {
        c->left = strtoul(c->head.data, NULL, 16);
        c->head.length = 0;
        c->phase = c->left ? CHUNK_DATA : TRAILER;
      }
      break;
    case LENGTH_BODY:
    case CHUNK_DATA:
      if (n > c->left) n = c->left;
      append(&c->body, data, n);
      c->left -= n;
      if (!c->left) {
        ended = c->phase == LENGTH_BODY;
        if (!ended) c->phase = CHUNK_END;
      }
      break;
    case EOF_BODY:
      append(&c->body, data, n);
      break;
    case CHUNK_END:
      n = gather(c, data, length, "\r\n", &complete);
      if (complete) {
        c->head.length = 0;
        c->phase = CHUNK_SIZE;
      }
      break;
    case TRAILER: // no gateway sends trailers here: the blank line is the end
      n = gather(c, data, length, "\r\n", &complete);
      ended = complete;
      break;
    }
    data += n;
    length -= n;
  }
  if (tokens_wanted) find_tokens(c);
  if (ended) {
    if (length) c->keep_alive = false;
    finish(c, !length);
  }
}

static void receive(struct conn *c) {
  static char buffer[READ_SIZE];
  if (c->fd < 0) return;
  ssize_t n = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
  if (n < 0 && errno == EAGAIN) return;
  if (n > 0) {
    feed(c, buffer, n);
    return;
  }
  bool waiting = c->phase == WAITING, whole = n == 0 && c->phase == EOF_BODY;
  if (waiting) hang_up(c);
  else finish(c, whole);
}

static void look_after(struct conn *c, int64_t t) { // starts that are due, answers that never came
  if (c->phase == WAITING) {
    if (c->start_at <= t) begin(c);
  } else if (t - c->begun > timeout * 1e9) {
    fail(c, TIMEOUT);
    under_way--;
    hang_up(c);
    rest(c, t);
  }
}

// Start -------------------------------------------------------------------------------------------------------------

static void usage(void) {
  fprintf(stderr, "usage: load --to 127.0.0.1:PORT --body FILE [options]; they are listed at the top of load.c\n");
  exit(2);
}

static void build_request(const char *to, const char *headers, const char *file) {
  static char body[1 << 20], head[1 << 14];
  FILE *f = fopen(file, "rb");
  if (!f) {
    perror(file);
    exit(2);
  }
  size_t length = fread(body, 1, sizeof body, f);
  fclose(f);
  int n = snprintf(head, sizeof head,
                   "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nAccept: */*\r\n"
                   "User-Agent: patchbay-bench\r\n%sContent-Length: %zu\r\n\r\n",
                   path, to, headers, length);
  append(&request, head, n);
  append(&request, body, length);
}

static void read_options(int argc, char **argv) {
  static const struct option options[] = {
      {"to", 1, 0, 'a'},     {"path", 1, 0, 'p'},     {"body", 1, 0, 'b'},      {"header", 1, 0, 'h'},
      {"tokens", 1, 0, 't'}, {"seconds", 1, 0, 's'},  {"warm-up", 1, 0, 'w'},   {"connections", 1, 0, 'c'},
      {"gaps", 0, 0, 'g'},   {"requests", 1, 0, 'r'}, {"spread-ms", 1, 0, 'd'}, {"timeout", 1, 0, 'o'},
      {0, 0, 0, 0}};
  static char headers[8192];
  const char *to = NULL, *file = NULL;
  for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
    if (o == 'a') to = optarg;
    else if (o == 'p') path = optarg;
    else if (o == 'b') file = optarg;
    else if (o == 'h') strncat(strncat(headers, optarg, 4000), "\r\n", 3);
    else if (o == 't') tokens_wanted = atoi(optarg);
    else if (o == 's') seconds = atof(optarg);
    else if (o == 'w') warm_up = atof(optarg);
    else if (o == 'c') connections = atoi(optarg);
    else if (o == 'g') keep_gaps = true;
    else if (o == 'r') request_limit = strtoul(optarg, NULL, 10);
    else if (o == 'd') spread_ms = atoi(optarg);
    else if (o == 'o') timeout = atof(optarg);
    else usage();
  }
  const char *colon = to ? strchr(to, ':') : NULL;
  if (!colon || !file || strncmp(to, "127.0.0.1:", 10)) usage(); // loopback only: one clock, and no accidents
  target.sin_family = AF_INET;
  target.sin_port = htons(atoi(colon + 1));
  target.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  build_request(to, headers, file);
  if (request_limit) seconds = 1e6;
  window_start = now_ns() + (int64_t)(warm_up * 1e9);
  window_end = window_start + (int64_t)(seconds * 1e9);
}

int main(int argc, char **argv) {
  signal(SIGPIPE, SIG_IGN);
  read_options(argc, argv);
  poll_fd = epoll_create1(EPOLL_CLOEXEC);
  struct conn *all = calloc(connections, sizeof *all);
  int64_t t = now_ns(), checked = t;
  for (int i = 0; i < connections; i++) {
    all[i].fd = -1;
    rest(&all[i], t + (int64_t)spread_ms * 1000000 * i / connections);
    look_after(&all[i], t);
  }
  struct epoll_event events[MAX_EVENTS];
  while (under_way || may_begin(t)) {
    int n = epoll_wait(poll_fd, events, MAX_EVENTS, POLL_MS);
    for (int i = 0; i < n; i++) receive(events[i].data.ptr);
    t = now_ns();
    if (t - checked < POLL_MS * 1000000) continue;
    checked = t;
    for (int i = 0; i < connections; i++) look_after(&all[i], t);
  }
  if (t < window_end) window_end = t;
  double window = (window_end - window_start) / 1e9;
  unsigned long failures = 0;
  for (int i = 0; i < FAILURES; i++) failures += failed[i];
  printf("{\"connections\":%d,\"window_s\":%.3f,\"sent\":%lu,\"answers\":%lu,\"failures\":%lu,\"rps\":%.1f,"
         "\"tokens_per_s\":%.0f,\"failed\":{",
         connections, window, sent, answers, failures, in_window / window, window_tokens / window);
  for (int i = 0; i < FAILURES; i++) printf("%s\"%s\":%lu", i ? "," : "", failure_names[i], failed[i]);
  printf("}");
  print_samples("latency_us", &latency);
  print_samples("first_token_us", &first_token);
  print_samples("gap_us", &gap);
  print_samples("hop_us", &hop);
  if (sample[0]) printf(",\"sample\":\"%s\"", sample);
  printf("}\n");
  return failures ? 1 : 0;
}
