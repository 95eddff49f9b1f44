// Relay-go is a plugin without an SDK: an executor for providers that speak OpenAI's dialect, and a stream
// chunk interceptor that masks words. It is written from the protos; its manual is the section "Without our
// SDK" of proto/README.md.
package main

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	pluginv1 "patchbay.dev/examples/relay-go/gen/patchbay/plugin/v1"
)

const (
	messageLimit = 33 << 20
	streamWindow = 256 << 10
	grace        = 10 * time.Minute
	lastWords    = 5 * time.Second
)

func main() {
	address := flag.String("address", "[::]:7003", "where to listen, host:port or unix:/path")
	flag.Parse()
	if err := run(*address); err != nil {
		fmt.Fprintln(os.Stderr, "relay-go:", err)
		os.Exit(1)
	}
}

func run(address string) error {
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	keys, err := loadKeys(pluginID)
	if err != nil {
		return err
	}
	certificates := certificatesOfEnvironment()
	network, where := "tcp", address
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, where, certificates.directory = "unix", path, ""
	}
	shown, err := certificates.server()
	if err != nil {
		return err
	}
	listener, err := net.Listen(network, where)
	if err != nil {
		return err
	}
	stop, unregister := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	finished, finish := context.WithCancel(context.Background())
	defer finish()

	registrations := newRegistrations(keys, log)
	gate := newGate(keys, registrations, log)
	server := grpc.NewServer(
		grpc.Creds(shown),
		grpc.MaxRecvMsgSize(messageLimit),
		grpc.InitialWindowSize(streamWindow),
		// Hosts ping every 20 or 30 s, also while no call runs.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(gate.unary),
		grpc.StreamInterceptor(gate.stream(finished)),
	)
	healthy := health.NewServer() // SERVING under the empty name
	grpc_health_v1.RegisterHealthServer(server, healthy)
	pluginv1.RegisterPluginServiceServer(server, registrations)
	pluginv1.RegisterExecutorServiceServer(server, newExecutor(keys))
	host := newHost(keys[0], "relay-"+rand.Text())
	defer host.close()
	pluginv1.RegisterStreamChunkInterceptorServiceServer(server, &masker{host: host, log: log})

	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	log.Info("serving", "plugin_id", pluginID, "address", listener.Addr().String())
	select {
	case err := <-failed:
		return err
	case <-stop.Done():
	}
	unregister() // a second signal ends the process at once
	log.Info("draining")
	healthy.Shutdown() // says NOT_SERVING to those who watch
	select {
	case <-gate.drain():
	case <-time.After(grace):
	}
	// Watches of health do not end by themselves; what is answered is still written.
	finish()
	last := time.AfterFunc(lastWords, server.Stop)
	defer last.Stop()
	server.GracefulStop()
	log.Info("ended")
	return nil
}
