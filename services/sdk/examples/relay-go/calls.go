package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	pluginv1 "patchbay.dev/examples/relay-go/gen/patchbay/plugin/v1"
)

const healthPrefix = "/grpc.health.v1.Health/"

// Unary methods that keep their limits themselves, towards the provider; all others come with a deadline.
var withoutDeadline = map[string]bool{
	pluginv1.ExecutorService_Execute_FullMethodName:     true,
	pluginv1.ExecutorService_CountTokens_FullMethodName: true,
	pluginv1.ExecutorService_HttpRequest_FullMethodName: true,
}

type settingsKey struct{}

// settingsOf returns the configuration that the call named.
func settingsOf(ctx context.Context) *settings {
	return ctx.Value(settingsKey{}).(*settings)
}

// gate stands before every call but health's: it says who may call and in which configuration, counts what
// runs, and refuses what comes while the process drains.
type gate struct {
	keys          []pluginKey
	registrations *registrations
	log           *slog.Logger

	lock     sync.Mutex
	draining bool
	running  int
	idle     chan struct{}
}

func newGate(keys []pluginKey, registrations *registrations, log *slog.Logger) *gate {
	return &gate{keys: keys, registrations: registrations, log: log, idle: make(chan struct{})}
}

// drain refuses new calls from now on; the channel is closed when none runs.
func (g *gate) drain() <-chan struct{} {
	g.lock.Lock()
	defer g.lock.Unlock()
	if !g.draining {
		g.draining = true
		if g.running == 0 {
			close(g.idle)
		}
	}
	return g.idle
}

func (g *gate) enter() error {
	g.lock.Lock()
	defer g.lock.Unlock()
	if g.draining {
		return notSent(codes.Unavailable, "DRAINING", "this process is about to end")
	}
	g.running++
	return nil
}

func (g *gate) leave() {
	g.lock.Lock()
	defer g.lock.Unlock()
	g.running--
	if g.draining && g.running == 0 {
		close(g.idle)
	}
}

// admit checks the metadata of a call and returns the context in which it runs.
func (g *gate) admit(ctx context.Context, method string) (context.Context, error) {
	if method == pluginv1.PluginService_Challenge_FullMethodName || method == pluginv1.PluginService_Register_FullMethodName {
		return ctx, nil // the handshake proves who calls
	}
	given, _ := metadata.FromIncomingContext(ctx)
	if id := first(given, "patchbay-plugin"); id != "" {
		if err := mustBeOurs(id); err != nil {
			return nil, err
		}
	}
	if err := checkToken(g.keys, pluginID, first(given, "patchbay-token"), time.Now()); err != nil {
		return nil, err
	}
	if strings.HasPrefix(method, "/patchbay.plugin.v1.PluginService/") {
		return ctx, nil // speaks of registrations, not in one
	}
	found, err := g.registrations.settings(first(given, "patchbay-config"))
	if err != nil {
		return nil, err
	}
	return context.WithValue(ctx, settingsKey{}, found), nil
}

func first(given metadata.MD, key string) string {
	if values := given.Get(key); len(values) > 0 {
		return values[0]
	}
	return ""
}

func (g *gate) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (answer any, err error) {
	if strings.HasPrefix(info.FullMethod, healthPrefix) {
		return handler(ctx, request)
	}
	if err := g.enter(); err != nil {
		return nil, err
	}
	defer g.leave()
	defer g.recovered(info.FullMethod, &err)
	if _, ok := ctx.Deadline(); !ok && !withoutDeadline[info.FullMethod] {
		return nil, failure(codes.InvalidArgument, "NO_DEADLINE", "the call has no deadline")
	}
	admitted, err := g.admit(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	return handler(admitted, request)
}

// stream does the same for streams; watches of health end with finished.
func (g *gate) stream(finished context.Context) grpc.StreamServerInterceptor {
	return func(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
		if strings.HasPrefix(info.FullMethod, healthPrefix) {
			ctx, cancel := context.WithCancel(stream.Context())
			defer context.AfterFunc(finished, cancel)()
			defer cancel()
			return handler(server, &inContext{stream, ctx})
		}
		if err := g.enter(); err != nil {
			return err
		}
		defer g.leave()
		defer g.recovered(info.FullMethod, &err)
		admitted, err := g.admit(stream.Context(), info.FullMethod)
		if err != nil {
			return err
		}
		return handler(server, &inContext{stream, admitted})
	}
}

// inContext is a stream in another context.
type inContext struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *inContext) Context() context.Context { return s.ctx }

// recovered turns a panic into INTERNAL: the caller is told an id, the log has the rest.
func (g *gate) recovered(method string, err *error) {
	what := recover()
	if what == nil {
		return
	}
	var random [6]byte
	rand.Read(random[:]) // never fails
	id := hex.EncodeToString(random[:])
	g.log.Error("a call panicked", "method", method, "error_id", id, "panic", what, "stack", string(debug.Stack()))
	*err = failure(codes.Internal, "INTERNAL", "internal error "+id)
}
