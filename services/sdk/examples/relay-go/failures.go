package main

import (
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	typev1 "patchbay.dev/examples/relay-go/gen/patchbay/type/v1"
)

// failure returns an error that says its reason, as proto/README.md "Errors" has it. With notSent the
// caller knows that no work has begun.
func failure(code codes.Code, reason, message string, more ...protoadapt.MessageV1) error {
	return detailed(code, reason, message, nil, more...)
}

func notSent(code codes.Code, reason, message string) error {
	return detailed(code, reason, message, map[string]string{"sent": "NO"})
}

func unauthenticated(reason, message string) error {
	return failure(codes.Unauthenticated, reason, message)
}

func detailed(code codes.Code, reason, message string, metadata map[string]string, more ...protoadapt.MessageV1) error {
	info := &errdetails.ErrorInfo{Reason: reason, Domain: "patchbay.dev", Metadata: metadata}
	details := append([]protoadapt.MessageV1{protoadapt.MessageV1Of(info)}, more...)
	made, err := status.New(code, message).WithDetails(details...)
	if err != nil {
		return status.Error(codes.Internal, "an error could not be written")
	}
	return made.Err()
}

// upstreamFailure returns the failure of a call to a provider, whole.
func upstreamFailure(reason, message string, what *typev1.UpstreamError) error {
	more := []protoadapt.MessageV1{protoadapt.MessageV1Of(what)}
	if what.RetryAfter != nil {
		more = append(more, protoadapt.MessageV1Of(&errdetails.RetryInfo{RetryDelay: what.RetryAfter}))
	}
	return failure(codeOf(int(what.HttpStatus)), reason, message, more...)
}

// codeOf returns the code of an UpstreamError with that HTTP status.
func codeOf(httpStatus int) codes.Code {
	switch httpStatus {
	case 401:
		return codes.Unauthenticated
	case 403:
		return codes.PermissionDenied
	case 404:
		return codes.NotFound
	case 408, 504:
		return codes.DeadlineExceeded
	case 409:
		return codes.Aborted
	case 429:
		return codes.ResourceExhausted
	}
	if httpStatus >= 500 {
		return codes.Unavailable
	}
	return codes.InvalidArgument
}

// broken is a failure of the connection to a provider; far says how far the call came.
func broken(far typev1.Sent) error {
	what := &typev1.UpstreamError{HttpStatus: 502, Sent: far}
	return upstreamFailure("UPSTREAM_CONNECTION", "the connection to the provider failed or broke", what)
}

func truncated() error {
	what := &typev1.UpstreamError{HttpStatus: 502, Sent: typev1.Sent_SENT_YES}
	return upstreamFailure("UPSTREAM_TRUNCATED", "the provider's answer ended early", what)
}

func tooSlow(limit time.Duration, far typev1.Sent) error {
	what := &typev1.UpstreamError{HttpStatus: 504, Sent: far}
	return upstreamFailure("UPSTREAM_TIMEOUT", fmt.Sprintf("the provider was silent for %s", limit), what)
}
