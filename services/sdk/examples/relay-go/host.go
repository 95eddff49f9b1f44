package main

import (
	"context"
	"encoding/json"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	hostv1 "patchbay.dev/examples/relay-go/gen/patchbay/host/v1"
)

const (
	mostHosts     = 16
	tokenLifetime = 5 * time.Minute
	patience      = 500 * time.Millisecond // the host waits a second for the answer to a chunk
)

// host is the way back to the gateways that call this plugin.
type host struct {
	key    pluginKey
	caller string

	lock        sync.Mutex
	connections map[string]*grpc.ClientConn
}

func newHost(key pluginKey, caller string) *host {
	return &host{key: key, caller: caller, connections: map[string]*grpc.ClientConn{}}
}

// say writes one line to the log of the gateway whose call ctx is of: in that call where it grants callbacks,
// else at PATCHBAY_HOST_ADDRESS. Without either it does nothing.
func (h *host) say(ctx context.Context, message string, fields map[string]any) error {
	given, _ := metadata.FromIncomingContext(ctx)
	address, scope := first(given, "patchbay-callback"), first(given, "patchbay-scope")
	if address == "" {
		address, scope = os.Getenv("PATCHBAY_HOST_ADDRESS"), ""
	}
	if address == "" {
		return nil
	}
	connection, err := h.connection(address)
	if err != nil {
		return err
	}
	told, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	token := mintToken(h.key, hostAudience(pluginID), h.caller, time.Now().Add(tokenLifetime))
	pairs := []string{"patchbay-plugin", pluginID, "patchbay-token", token}
	if scope != "" {
		pairs = append(pairs, "patchbay-scope", scope)
	}
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, pairs...), patience)
	defer cancel()
	_, err = hostv1.NewHostServiceClient(connection).Log(ctx, &hostv1.HostLogRequest{
		Level: hostv1.LogLevel_LOG_LEVEL_INFO, Message: message, Fields: told,
	})
	return err
}

// connection returns the connection to a host; hosts come and go, so only some are kept.
func (h *host) connection(address string) (*grpc.ClientConn, error) {
	h.lock.Lock()
	defer h.lock.Unlock()
	if found, ok := h.connections[address]; ok {
		return found, nil
	}
	for old, connection := range h.connections {
		if len(h.connections) < mostHosts {
			break
		}
		delete(h.connections, old)
		connection.Close()
	}
	// Straight there, whatever proxy the providers need.
	shown, err := certificatesOfEnvironment().client()
	if err != nil {
		return nil, err
	}
	made, err := grpc.NewClient(address, grpc.WithTransportCredentials(shown), grpc.WithNoProxy())
	if err == nil {
		h.connections[address] = made
	}
	return made, err
}

func (h *host) close() {
	h.lock.Lock()
	defer h.lock.Unlock()
	for _, connection := range h.connections {
		connection.Close()
	}
}
