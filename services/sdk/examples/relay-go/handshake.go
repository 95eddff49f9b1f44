package main

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc/codes"

	pluginv1 "patchbay.dev/examples/relay-go/gen/patchbay/plugin/v1"
)

const (
	pluginID          = "relay-go"
	protocolVersion   = 1
	schemaVersion     = 1
	nonceLength       = 16
	nonceLifetime     = time.Minute
	mostChallenges    = 1024
	keptConfiguration = 2
)

// settings is the plugin's configuration.
type settings struct {
	Words []string `yaml:"words"`
}

func parseSettings(config []byte) (*settings, error) {
	found := &settings{Words: []string{"swordfish"}}
	if err := yaml.Unmarshal(config, found); err != nil {
		return nil, failure(codes.InvalidArgument, "CONFIG_INVALID", "the configuration of relay-go is {words: [string, …]}")
	}
	found.Words = slices.DeleteFunc(found.Words, func(word string) bool { return word == "" })
	return found, nil
}

// challenge is what a nonce was handed out for.
type challenge struct {
	hostID string
	until  time.Time
}

// named is a configuration under the hash that calls name.
type named struct {
	hash     string
	settings *settings
}

// registrations is PluginService: challenges, and the last two configurations.
type registrations struct {
	pluginv1.UnimplementedPluginServiceServer
	keys []pluginKey
	log  *slog.Logger

	lock       sync.Mutex
	challenges map[[nonceLength]byte]challenge
	kept       []named
}

func newRegistrations(keys []pluginKey, log *slog.Logger) *registrations {
	return &registrations{keys: keys, log: log, challenges: map[[nonceLength]byte]challenge{}}
}

// settings returns the configuration of that hash, the newest for an empty one.
func (r *registrations) settings(hash string) (*settings, error) {
	r.lock.Lock()
	defer r.lock.Unlock()
	for i := len(r.kept) - 1; i >= 0; i-- {
		if hash == "" || r.kept[i].hash == hash {
			return r.kept[i].settings, nil
		}
	}
	return nil, notSent(codes.Unavailable, "NOT_REGISTERED", "that configuration is not known here")
}

func (r *registrations) Challenge(_ context.Context, request *pluginv1.ChallengeRequest) (*pluginv1.ChallengeResponse, error) {
	if err := mustBeOurs(request.PluginId); err != nil {
		return nil, err
	}
	if len(request.HostNonce) != nonceLength {
		return nil, failure(codes.InvalidArgument, "INVALID_NONCE", fmt.Sprintf("host_nonce must be %d bytes", nonceLength))
	}
	var nonce [nonceLength]byte
	rand.Read(nonce[:]) // never fails
	now := time.Now()
	r.lock.Lock()
	defer r.lock.Unlock()
	for old, waiting := range r.challenges {
		if now.After(waiting.until) {
			delete(r.challenges, old)
		}
	}
	if len(r.challenges) >= mostChallenges {
		return nil, failure(codes.ResourceExhausted, "TOO_MANY_CHALLENGES", "too many registrations at once")
	}
	r.challenges[nonce] = challenge{request.HostId, now.Add(nonceLifetime)}
	return &pluginv1.ChallengeResponse{
		PluginNonce: nonce[:],
		Proof:       pluginProof(r.keys[0].channel, pluginID, request.HostId, request.HostNonce, nonce[:]),
	}, nil
}

func (r *registrations) Register(_ context.Context, request *pluginv1.RegisterRequest) (*pluginv1.RegisterResponse, error) {
	if err := mustBeOurs(request.PluginId); err != nil {
		return nil, err
	}
	if !r.take(request.PluginNonce, request.HostId) {
		return nil, unauthenticated("CHALLENGE_UNKNOWN", "the nonce is unknown, used or older than a minute; begin with Challenge")
	}
	if !slices.ContainsFunc(r.keys, func(key pluginKey) bool {
		return hmac.Equal(request.Proof, hostProof(key.channel, pluginID, request.HostId, request.ConfigHash, request.PluginNonce))
	}) {
		return nil, unauthenticated("PROOF_INVALID", "the host does not know the key of "+pluginID)
	}
	if !slices.Contains(request.ProtocolVersions, protocolVersion) {
		// Answered all the same: the host can say what is wrong.
		return registration(), nil
	}
	return r.configure(request.Config, request.ConfigHash)
}

func (r *registrations) Reconfigure(_ context.Context, request *pluginv1.ReconfigureRequest) (*pluginv1.RegisterResponse, error) {
	if err := mustBeOurs(request.PluginId); err != nil {
		return nil, err
	}
	return r.configure(request.Config, request.ConfigHash)
}

func (r *registrations) NotifyRegistration(_ context.Context, request *pluginv1.NotifyRegistrationRequest) (*pluginv1.NotifyRegistrationResponse, error) {
	if request.Accepted {
		r.log.Info("a host uses this plugin", "host_id", request.HostId)
	} else {
		r.log.Warn("a host refused this plugin", "host_id", request.HostId, "reasons", strings.Join(request.Reasons, "; "))
	}
	return &pluginv1.NotifyRegistrationResponse{}, nil
}

// take uses a nonce up; false where it was not handed out to that host, or too long ago.
func (r *registrations) take(nonce []byte, hostID string) bool {
	if len(nonce) != nonceLength {
		return false
	}
	r.lock.Lock()
	defer r.lock.Unlock()
	waiting, ok := r.challenges[[nonceLength]byte(nonce)]
	delete(r.challenges, [nonceLength]byte(nonce))
	return ok && waiting.hostID == hostID && !time.Now().After(waiting.until)
}

func (r *registrations) configure(config []byte, hash string) (*pluginv1.RegisterResponse, error) {
	sum := sha256.Sum256(config)
	if hex.EncodeToString(sum[:]) != hash {
		return nil, failure(codes.InvalidArgument, "CONFIG_HASH_MISMATCH", "config_hash is not the SHA-256 of config")
	}
	parsed, err := parseSettings(config)
	if err != nil {
		return nil, err
	}
	r.lock.Lock()
	defer r.lock.Unlock()
	// One that is kept already becomes the newest, else a host that registers again pushed the other out.
	r.kept = slices.DeleteFunc(r.kept, func(item named) bool { return item.hash == hash })
	r.kept = append(r.kept, named{hash, parsed})
	r.kept = slices.Delete(r.kept, 0, max(0, len(r.kept)-keptConfiguration))
	return registration(), nil
}

func mustBeOurs(id string) error {
	if id != pluginID {
		return failure(codes.NotFound, "PLUGIN_UNKNOWN", "only "+pluginID+" is served here")
	}
	return nil
}

// registration says what this plugin is and can do.
func registration() *pluginv1.RegisterResponse {
	return &pluginv1.RegisterResponse{
		ProtocolVersion: protocolVersion,
		SchemaVersion:   schemaVersion,
		PluginId:        pluginID,
		Metadata: &pluginv1.Metadata{
			Name:    "Relay in Go",
			Version: "1.0.0",
			Author:  "Patchbay",
			ConfigFields: []*pluginv1.ConfigField{{
				Name:        "words",
				Type:        pluginv1.ConfigFieldType_CONFIG_FIELD_TYPE_ARRAY,
				Description: "Words that are masked in streamed answers.",
			}},
		},
		Capabilities: &pluginv1.Capabilities{
			Executor: &pluginv1.ExecutorCapability{
				InputFormats:  []string{"openai"},
				OutputFormats: []string{"openai"},
				Operations: []*pluginv1.FormatOperations{{
					Format: "openai", Operations: []string{"chat", "completions", "embeddings"},
				}},
			},
			ResponseStreamInterceptor: true,
			InterceptorNeeds:          &pluginv1.InterceptorNeeds{NoRequestBody: true},
		},
	}
}
