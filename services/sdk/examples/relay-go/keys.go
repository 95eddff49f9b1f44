package main

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// What is allowed between the clocks of a caller and of this process.
const clockLeeway = 30 * time.Second

// pluginKey is one generation of the plugin's key: what is derived from it, never the key itself.
type pluginKey struct {
	channel   []byte
	sealing   []byte
	sealingID string
}

// deriveKey returns the keys that are derived from the 32 bytes of a plugin's key.
func deriveKey(key []byte) (pluginKey, error) {
	channel, err := hkdf.Key(sha256.New, key, nil, "patchbay channel v1", 32)
	if err != nil {
		return pluginKey{}, err
	}
	sealing, err := hkdf.Key(sha256.New, key, nil, "patchbay sealing v1", 32)
	if err != nil {
		return pluginKey{}, err
	}
	return pluginKey{channel: channel, sealing: sealing, sealingID: keyID(sealing)}, nil
}

// keyID names a key: the first 8 bytes of its SHA-256, in hex.
func keyID(key []byte) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:8])
}

// loadKeys returns the keys of the environment, the newest first. Errors name the source, never its text.
func loadKeys(pluginID string) ([]pluginKey, error) {
	source, text := "PATCHBAY_PLUGIN_KEY", os.Getenv("PATCHBAY_PLUGIN_KEY")
	if path := os.Getenv("PATCHBAY_PLUGIN_KEY_FILE"); text == "" && path != "" {
		read, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		source, text = path, string(read)
	}
	var found []pluginKey
	for line := range strings.Lines(text) {
		value := strings.TrimSpace(line)
		if value == "" {
			continue
		}
		// Base64 may end in "=", so a line names a plugin only if something follows.
		if name, rest, named := strings.Cut(value, "="); named && strings.Trim(rest, "=") != "" {
			if strings.TrimSpace(name) != pluginID {
				continue
			}
			value = strings.TrimSpace(rest)
		}
		key, err := parseKey(value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", source, err)
		}
		derived, err := deriveKey(key)
		if err != nil {
			return nil, err
		}
		found = append(found, derived)
	}
	if len(found) == 0 {
		return nil, errors.New("no key of plugin " + pluginID + ": set PATCHBAY_PLUGIN_KEY or PATCHBAY_PLUGIN_KEY_FILE to what `patchbay plugin key " + pluginID + "` prints")
	}
	return found, nil
}

func parseKey(text string) ([]byte, error) {
	decode := base64.RawURLEncoding.DecodeString
	if len(text) == 64 {
		decode = hex.DecodeString
	} else {
		text = strings.TrimRight(text, "=")
	}
	key, err := decode(text)
	if err != nil || len(key) != 32 {
		return nil, errors.New("no key of 32 bytes in hex or base64url")
	}
	return key, nil
}

// mac returns the HMAC of parts that are divided by zero bytes.
func mac(key []byte, parts ...[]byte) []byte {
	digest := hmac.New(sha256.New, key)
	for i, part := range parts {
		if i > 0 {
			digest.Write([]byte{0})
		}
		digest.Write(part)
	}
	return digest.Sum(nil)
}

// pluginProof is what ChallengeResponse.proof holds.
func pluginProof(channel []byte, pluginID, hostID string, hostNonce, pluginNonce []byte) []byte {
	both := append(append([]byte{}, hostNonce...), pluginNonce...)
	return mac(channel, []byte("challenge-plugin"), []byte(pluginID), []byte(hostID), both)
}

// hostProof is what RegisterRequest.proof must hold.
func hostProof(channel []byte, pluginID, hostID, configHash string, pluginNonce []byte) []byte {
	return mac(channel, []byte("challenge-host"), []byte(pluginID), []byte(hostID), []byte(configHash), pluginNonce)
}

// hostAudience is what the tokens of a plugin's callbacks are for.
func hostAudience(pluginID string) string { return "patchbay.host.v1.HostService/" + pluginID }

// mintToken returns the token of caller for audience, good until expiry.
func mintToken(key pluginKey, audience, caller string, expiry time.Time) string {
	until := strconv.FormatInt(expiry.Unix(), 10)
	sum := mac(key.channel, []byte("call"), []byte(audience), []byte(caller), []byte(until))
	return "v1." + caller + "." + until + "." + hex.EncodeToString(sum)
}

// checkToken returns why the token of a call to pluginID is refused, nil if it is good.
func checkToken(keys []pluginKey, pluginID, token string, now time.Time) error {
	invalid := unauthenticated("TOKEN_INVALID", "the call has no token that is good here; give both sides keys of one root")
	body, ok := strings.CutPrefix(token, "v1.")
	if !ok {
		return invalid
	}
	// The caller may hold dots, so the other two are split off from the right.
	body, given, ok := cutLast(body, ".")
	if !ok {
		return invalid
	}
	caller, expiry, ok := cutLast(body, ".")
	if !ok {
		return invalid
	}
	sum, err := hex.DecodeString(given)
	if err != nil {
		return invalid
	}
	seconds, err := strconv.ParseInt(expiry, 10, 64)
	if err != nil {
		return invalid
	}
	for _, key := range keys {
		if hmac.Equal(sum, mac(key.channel, []byte("call"), []byte(pluginID), []byte(caller), []byte(expiry))) {
			if now.After(time.Unix(seconds, 0).Add(clockLeeway)) {
				return unauthenticated("TOKEN_EXPIRED", "the token has expired; compare the clocks")
			}
			return nil
		}
	}
	return invalid
}

func cutLast(text, separator string) (before, after string, found bool) {
	if i := strings.LastIndex(text, separator); i >= 0 {
		return text[:i], text[i+len(separator):], true
	}
	return text, "", false
}
