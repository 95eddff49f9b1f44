package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pluginv1 "patchbay.dev/examples/relay-go/gen/patchbay/plugin/v1"
	typev1 "patchbay.dev/examples/relay-go/gen/patchbay/type/v1"
)

const (
	firstByte     = 120 * time.Second
	idle          = 300 * time.Second
	mostErrorBody = 1 << 20
	mostBody      = 32 << 20
)

// Headers that belong to a connection, not to a message; lengths and encodings too.
var hopByHop = map[string]bool{
	"connection": true, "keep-alive": true, "proxy-authenticate": true, "proxy-authorization": true,
	"proxy-connection": true, "te": true, "trailer": true, "transfer-encoding": true, "upgrade": true,
	"content-length": true, "content-encoding": true,
}

var errSilent = errors.New("the provider was silent")

// provider makes HTTP calls: each is one request on the wire, and never follows a redirect.
type provider struct {
	client *http.Client
}

type proxyKey struct{}

func newProvider() *provider {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableCompression = true // bytes go on as they came
	transport.MaxIdleConnsPerHost = 64
	// The pool tells connections apart by proxy, so that one transport serves all of them.
	transport.Proxy = func(request *http.Request) (*url.URL, error) {
		if proxy, ok := request.Context().Value(proxyKey{}).(*url.URL); ok {
			return proxy, nil
		}
		return http.ProxyFromEnvironment(request)
	}
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &provider{&http.Client{Transport: transport, CheckRedirect: stay}}
}

// reply is a provider's answer whose body is read piece by piece, each within the provider's limits.
type reply struct {
	*http.Response
	ctx     context.Context
	cancel  context.CancelCauseFunc
	caller  context.Context
	silence *time.Timer
	limit   time.Duration
	idle    time.Duration
}

// send makes the request; the reply must be closed. Errors are failures of the connection, or of the caller.
func (p *provider) send(caller context.Context, settings *pluginv1.ProviderSettings, method string, target *url.URL, headers http.Header, body []byte) (*reply, error) {
	ctx, cancel := context.WithCancelCause(caller)
	if proxy := settings.GetProxyUrl(); proxy != "" {
		parsed, err := url.Parse(proxy)
		if err != nil {
			cancel(nil)
			return nil, broken(typev1.Sent_SENT_NO)
		}
		ctx = context.WithValue(ctx, proxyKey{}, parsed)
	}
	var connected atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	})
	request, err := http.NewRequestWithContext(ctx, method, target.String(), bytes.NewReader(body))
	if err != nil {
		cancel(nil)
		return nil, failure(codes.InvalidArgument, "INVALID_HTTP_REQUEST", "a method or URL that cannot be sent")
	}
	request.Header = headers
	if headers.Get("Idempotency-Key") != "" {
		// With it net/http would send the request a second time by itself: one call is one attempt.
		request.GetBody = nil
	}
	made := &reply{ctx: ctx, cancel: cancel, caller: caller, limit: limitOf(settings.GetFirstByteTimeout(), firstByte), idle: limitOf(settings.GetIdleTimeout(), idle)}
	made.silence = time.AfterFunc(made.limit, func() { cancel(errSilent) })
	made.Response, err = p.client.Do(request)
	if err != nil {
		far := typev1.Sent_SENT_NO
		if connected.Load() {
			far = typev1.Sent_SENT_UNKNOWN
		}
		defer made.close()
		return nil, made.failure(broken(far), far)
	}
	if encoding := made.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		defer made.close()
		what := &typev1.UpstreamError{HttpStatus: 502, Sent: typev1.Sent_SENT_YES}
		return nil, upstreamFailure("UPSTREAM_ENCODED", "the provider answered in an encoding that it was not asked for", what)
	}
	return made, nil
}

func limitOf(given *durationpb.Duration, otherwise time.Duration) time.Duration {
	if given == nil {
		return otherwise
	}
	return given.AsDuration()
}

// Read reads what there is. The provider's silence counts, not that of a caller who does not take it.
func (r *reply) Read(into []byte) (int, error) {
	r.silence.Reset(r.limit)
	count, err := r.Body.Read(into)
	r.silence.Stop()
	if count > 0 {
		r.limit = r.idle
	}
	if err != nil && err != io.EOF {
		err = r.failure(truncated(), typev1.Sent_SENT_YES)
	}
	return count, err
}

// failure says what ended the call: the caller, the provider's silence, or what is given.
func (r *reply) failure(otherwise error, far typev1.Sent) error {
	if err := r.caller.Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	if context.Cause(r.ctx) == errSilent {
		return tooSlow(r.limit, far)
	}
	return otherwise
}

// all reads the whole body, at most limit bytes of it.
func (r *reply) all(limit int) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err == nil && len(body) > limit {
		what := &typev1.UpstreamError{HttpStatus: 502, Sent: typev1.Sent_SENT_YES}
		err = upstreamFailure("UPSTREAM_TOO_LARGE", fmt.Sprintf("the provider's answer is larger than %d bytes", limit), what)
	}
	return body, err
}

func (r *reply) close() {
	r.silence.Stop()
	r.cancel(nil)
	if r.Response != nil {
		r.Body.Close()
	}
}

func (r *reply) contentType() string { return r.Header.Get("Content-Type") }

// refused returns the failure that a provider answered with.
func (r *reply) refused(now time.Time) error {
	body := make([]byte, mostErrorBody)
	count, err := io.ReadFull(r, body)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return err
	}
	what := &typev1.UpstreamError{
		HttpStatus: int32(r.StatusCode), Headers: headerMap(r.Header), Body: body[:count],
		ContentType: r.contentType(), RetryAfter: retryAfter(r.Header.Get("Retry-After"), now), Sent: typev1.Sent_SENT_YES,
	}
	if r.StatusCode < 400 {
		what.HttpStatus = 502
		return upstreamFailure("UPSTREAM_REDIRECT", "the provider sends elsewhere", what)
	}
	return upstreamFailure("UPSTREAM_ERROR", fmt.Sprintf("the provider answered %d", r.StatusCode), what)
}

// retryAfter reads seconds or a date; garbage is nothing.
func retryAfter(text string, now time.Time) *durationpb.Duration {
	if seconds, err := strconv.ParseFloat(text, 64); err == nil && seconds >= 0 && seconds < 1e9 {
		return durationpb.New(time.Duration(seconds * float64(time.Second)))
	}
	if date, err := http.ParseTime(text); err == nil && date.After(now) {
		return durationpb.New(date.Sub(now))
	}
	return nil
}

// headerMap returns headers as the contract has them: names in lower case, none of the connection's.
func headerMap(headers http.Header) map[string]*typev1.StringList {
	found := map[string]*typev1.StringList{}
	for name, values := range headers {
		if lower := strings.ToLower(name); !hopByHop[lower] {
			found[lower] = &typev1.StringList{Values: values}
		}
	}
	return found
}
