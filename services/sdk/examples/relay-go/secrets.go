package main

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"encoding/json"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	typev1 "patchbay.dev/examples/relay-go/gen/patchbay/type/v1"
)

const nonceBytes = 12

// secret is opened credential material. It prints as nothing, whatever verb a log line uses.
type secret struct {
	values  map[string]string
	origins []string
	until   time.Time
}

func (secret) String() string   { return "[redacted]" }
func (secret) GoString() string { return "[redacted]" }

// openSecret opens what was sealed for pluginID; nil for no secret is no error.
func openSecret(keys []pluginKey, pluginID string, sealed *typev1.SealedSecret, now time.Time) (*secret, error) {
	if sealed == nil {
		return nil, nil
	}
	refuse := func(reason, message string) (*secret, error) {
		return nil, failure(codes.FailedPrecondition, reason, message)
	}
	if sealed.PluginId != pluginID {
		return refuse("SECRET_FOREIGN", "the secret is for another plugin")
	}
	until := sealed.NotAfter.AsTime()
	if now.After(until) {
		return refuse("SECRET_EXPIRED", "the secret has expired")
	}
	at := slices.IndexFunc(keys, func(key pluginKey) bool { return key.sealingID == sealed.KeyId })
	if at < 0 {
		return refuse("SECRET_KEY_UNKNOWN", "the secret is sealed with a key that is not known here")
	}
	block, err := aes.NewCipher(keys[at].sealing)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	values := map[string]string{}
	if len(sealed.Ciphertext) < nonceBytes {
		return refuse("SECRET_INVALID", "the secret was changed on its way")
	}
	nonce, rest := sealed.Ciphertext[:nonceBytes], sealed.Ciphertext[nonceBytes:]
	plain, err := aead.Open(nil, nonce, rest, associatedData(sealed))
	if err != nil || json.Unmarshal(plain, &values) != nil {
		return refuse("SECRET_INVALID", "the secret was changed on its way")
	}
	return &secret{values: values, origins: sealed.AllowedOrigins, until: until}, nil
}

// associatedData is every field of a secret but its ciphertext.
func associatedData(sealed *typev1.SealedSecret) []byte {
	out := []byte("patchbay sealed v1")
	text := func(value string) {
		out = binary.BigEndian.AppendUint32(out, uint32(len(value)))
		out = append(out, value...)
	}
	text(sealed.KeyId)
	text(sealed.PluginId)
	text(sealed.CredentialId)
	out = binary.BigEndian.AppendUint64(out, uint64(sealed.Version))
	out = binary.BigEndian.AppendUint32(out, uint32(len(sealed.AllowedOrigins)))
	for _, origin := range sealed.AllowedOrigins {
		text(origin)
	}
	out = binary.BigEndian.AppendUint64(out, uint64(sealed.NotAfter.GetSeconds()))
	return binary.BigEndian.AppendUint32(out, uint32(sealed.NotAfter.GetNanos()))
}

// bearer returns the value of the Authorization header for target, empty where there is no secret.
func (s *secret) bearer(target *url.URL, now time.Time) (string, error) {
	if s == nil {
		return "", nil
	}
	if now.After(s.until) {
		return "", failure(codes.FailedPrecondition, "SECRET_EXPIRED", "the secret has expired")
	}
	if !slices.Contains(s.origins, origin(target)) {
		return "", failure(codes.PermissionDenied, "SECRET_ORIGIN", "the secret must not go to "+origin(target))
	}
	for _, name := range []string{"api_key", "access_token"} {
		if value := s.values[name]; value != "" {
			return "Bearer " + value, nil
		}
	}
	return "", failure(codes.FailedPrecondition, "SECRET_INVALID", "the secret has neither api_key nor access_token")
}

// origin returns scheme://host, with the port unless it is the scheme's own.
func origin(target *url.URL) string {
	scheme, host, port := strings.ToLower(target.Scheme), strings.ToLower(target.Hostname()), target.Port()
	if port != "" && port != map[string]string{"http": "80", "https": "443"}[scheme] {
		return scheme + "://" + net.JoinHostPort(host, port)
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return scheme + "://" + host
}

// parseURL refuses what parsers read differently: the check of a secret's origin must be the client's.
func parseURL(text string) (*url.URL, error) {
	parsed, err := url.Parse(text)
	if err != nil || parsed.Host == "" || parsed.User != nil || strings.Contains(text, "\\") {
		return nil, failure(codes.InvalidArgument, "INVALID_URL", "the URL must be absolute, without user information and backslashes")
	}
	return parsed, nil
}
