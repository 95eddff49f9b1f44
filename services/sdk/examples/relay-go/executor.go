package main

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	pluginv1 "patchbay.dev/examples/relay-go/gen/patchbay/plugin/v1"
	typev1 "patchbay.dev/examples/relay-go/gen/patchbay/type/v1"
)

const (
	defaultBaseURL = "https://api.openai.com/v1"
	mostEvent      = 8 << 20
	readSize       = 64 << 10
)

var paths = map[string]string{"chat": "/chat/completions", "completions": "/completions", "embeddings": "/embeddings"}

// What a plain request may not bring along: the connection's own, and credentials, which are ours.
var ownHeaders = map[string]bool{
	"host": true, "accept-encoding": true, "authorization": true,
	"x-api-key": true, "x-goog-api-key": true, "cookie": true,
}

// executor is ExecutorService for providers that speak OpenAI's dialect.
type executor struct {
	pluginv1.UnimplementedExecutorServiceServer
	keys     []pluginKey
	provider *provider
}

func newExecutor(keys []pluginKey) *executor {
	return &executor{keys: keys, provider: newProvider()}
}

func (e *executor) Identifier(context.Context, *pluginv1.IdentifierRequest) (*pluginv1.IdentifierResponse, error) {
	return &pluginv1.IdentifierResponse{Identifier: pluginID}, nil
}

func (e *executor) Execute(ctx context.Context, request *pluginv1.ExecutorRequest) (*pluginv1.ExecutorResponse, error) {
	answer, err := e.call(ctx, request)
	if err != nil {
		return nil, err
	}
	defer answer.close()
	body, err := answer.all(mostBody)
	if err != nil {
		return nil, err
	}
	meter := newMeter(len(request.Payload), request.Provider.GetTokenFactor())
	meter.said = len(contents(body))
	meter.document(body)
	return &pluginv1.ExecutorResponse{
		Payload: body, Headers: headerMap(answer.Header), ContentType: answer.contentType(),
		Status: int32(answer.StatusCode), Usage: meter.soFar(),
	}, nil
}

func (e *executor) ExecuteStream(request *pluginv1.ExecutorRequest, stream pluginv1.ExecutorService_ExecuteStreamServer) error {
	answer, err := e.call(stream.Context(), request)
	if err != nil {
		return err
	}
	defer answer.close()
	if strings.HasPrefix(answer.contentType(), "application/json") {
		body, err := answer.all(mostErrorBody)
		if err != nil {
			return err
		}
		what := &typev1.UpstreamError{HttpStatus: 502, Body: body, ContentType: answer.contentType(), Sent: typev1.Sent_SENT_YES}
		return upstreamFailure("UPSTREAM_NOT_A_STREAM", "the provider did not answer with a stream", what)
	}
	head := &pluginv1.StreamHead{Status: int32(answer.StatusCode), Headers: headerMap(answer.Header), ContentType: answer.contentType()}
	if err := stream.Send(&pluginv1.ExecutorStreamResponse{Message: &pluginv1.ExecutorStreamResponse_Head{Head: head}}); err != nil {
		return err
	}
	meter := newMeter(len(request.Payload), request.Provider.GetTokenFactor())
	if err := copyEvents(answer, stream, meter); err != nil {
		return err
	}
	tail := &pluginv1.StreamTail{Usage: meter.soFar()}
	return stream.Send(&pluginv1.ExecutorStreamResponse{Message: &pluginv1.ExecutorStreamResponse_Tail{Tail: tail}})
}

// copyEvents passes on what arrived together as one batch of events. Send waits while the host does not
// read, and then nothing is read from the provider either.
func copyEvents(answer *reply, stream pluginv1.ExecutorService_ExecuteStreamServer, meter *meter) error {
	var cutter cutter
	buffer := make([]byte, readSize)
	for {
		count, err := answer.Read(buffer)
		if err != nil && err != io.EOF {
			return err
		}
		events := cutter.add(buffer[:count])
		half := false
		if err == io.EOF {
			rest, whole := cutter.rest()
			half = len(rest) > 0 && !whole
			if whole {
				events = append(events, rest)
			}
		}
		if len(cutter.pending) > mostEvent {
			what := &typev1.UpstreamError{HttpStatus: 502, Sent: typev1.Sent_SENT_YES}
			return upstreamFailure("UPSTREAM_TOO_LARGE", "an event of the provider is too large", what)
		}
		for _, event := range events {
			meter.event(event)
		}
		if len(events) > 0 {
			batch := &pluginv1.StreamBatch{Chunks: events, UsageSoFar: meter.soFar()}
			if err := stream.Send(&pluginv1.ExecutorStreamResponse{Message: &pluginv1.ExecutorStreamResponse_Batch{Batch: batch}}); err != nil {
				return err
			}
		}
		if err == io.EOF {
			// Half an event, or no last word: what is cut must not look finished.
			if half || !meter.ended {
				return truncated()
			}
			return nil
		}
	}
}

func (e *executor) HttpRequest(ctx context.Context, request *pluginv1.ExecutorHTTPRequest) (*pluginv1.ExecutorHTTPResponse, error) {
	target, err := parseURL(request.Url)
	if err != nil {
		return nil, err
	}
	headers, err := e.authorized(request.Secret, target)
	if err != nil {
		return nil, err
	}
	for name, list := range request.Headers {
		if lower := strings.ToLower(name); !hopByHop[lower] && !ownHeaders[lower] {
			headers[http.CanonicalHeaderKey(name)] = list.Values
		}
	}
	answer, err := e.provider.send(ctx, request.Provider, request.Method, target, headers, request.Body)
	if err != nil {
		return nil, err
	}
	defer answer.close()
	body, err := answer.all(mostBody)
	if err != nil {
		return nil, err
	}
	return &pluginv1.ExecutorHTTPResponse{
		StatusCode: int32(answer.StatusCode), Headers: headerMap(answer.Header), Body: body, ContentType: answer.contentType(),
	}, nil
}

// call makes the provider's call of a model; what is not a 2xx is its failure.
func (e *executor) call(ctx context.Context, request *pluginv1.ExecutorRequest) (*reply, error) {
	path, ok := paths[request.Operation]
	if !ok || request.Format != "openai" {
		return nil, failure(codes.InvalidArgument, "OPERATION_NOT_SUPPORTED", "no such operation in this format here")
	}
	base := request.Provider.GetBaseUrl()
	if base == "" {
		base = defaultBaseURL
	}
	target, err := parseURL(strings.TrimRight(base, "/") + path)
	if err != nil {
		return nil, err
	}
	headers, err := e.authorized(request.Secret, target)
	if err != nil {
		return nil, err
	}
	// The provider's allow-list: what a client may say to it beside the body.
	for name, list := range request.Headers {
		if lower := strings.ToLower(name); strings.HasPrefix(lower, "openai-") || lower == "idempotency-key" {
			headers[http.CanonicalHeaderKey(name)] = list.Values
		}
	}
	headers.Set("Content-Type", orElse(request.ContentType, "application/json"))
	headers.Set("Accept", "application/json")
	if request.Stream {
		headers.Set("Accept", "text/event-stream")
	}
	if name := request.Provider.GetAttemptHeader(); name != "" {
		headers.Set(name, request.AttemptUid)
	}
	answer, err := e.provider.send(ctx, request.Provider, http.MethodPost, target, headers, request.Payload)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode < 200 || answer.StatusCode > 299 {
		defer answer.close()
		return nil, answer.refused(time.Now())
	}
	return answer, nil
}

// authorized returns the headers that carry the credential to target, none where there is no credential.
func (e *executor) authorized(sealed *typev1.SealedSecret, target *url.URL) (http.Header, error) {
	now := time.Now()
	opened, err := openSecret(e.keys, pluginID, sealed, now)
	if err != nil {
		return nil, err
	}
	bearer, err := opened.bearer(target, now)
	if err != nil {
		return nil, err
	}
	headers := http.Header{"Accept-Encoding": {"identity"}, "User-Agent": {pluginID + "/1.0"}}
	if bearer != "" {
		headers.Set("Authorization", bearer)
	}
	return headers, nil
}

func orElse(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}
