package main

import (
	"bytes"
	"encoding/hex"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	typev1 "patchbay.dev/examples/relay-go/gen/patchbay/type/v1"
)

// The test vectors of proto/README.md.
const (
	vectorKey       = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
	vectorPlugin    = "ec2952d05d0f544d73d05b1896d1a4010f0d0c506527a978716ed2ddaf736990"
	vectorHost      = "39d07a4641bb5063e8421c976caedb4064f91f2ea8017832088f2889a4984edd"
	vectorHash      = "9787b3fc799c73c8aad41738e88649be18e99408912dcdfa4001300c823e47de"
	vectorToken     = "v1.host-1.1700000300.084183ae0473be201b69499475c78ad44d815777695f82229d84d6115e3667cd"
	vectorHostToken = "v1.replica-1.1700000300.a29ab338604a2c378d2c1e7b880a587b939d024f10deafbc2a508a5e3cf86e1d"
	vectorSealed    = "000102030405060708090a0b5f9d64c524e0f34eafa068ec9f9010078ca11e69fc3f790be407e8b26e3eb5b9c4026aee36ab"
)

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	found, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func vectorKeys(t *testing.T) []pluginKey {
	t.Helper()
	key, err := deriveKey(unhex(t, vectorKey))
	if err != nil {
		t.Fatal(err)
	}
	return []pluginKey{key}
}

func reason(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return info.Reason
		}
	}
	return ""
}

func TestVectorsOfKeysAndProofs(t *testing.T) {
	key := vectorKeys(t)[0]
	host, plugin := unhex(t, "00112233445566778899aabbccddeeff"), unhex(t, "ffeeddccbbaa99887766554433221100")
	for _, vector := range []struct {
		name, want string
		got        []byte
	}{
		{"channel key", "1fe20ae4cb3718c6f28d1769445208f5099fe91ef874ef8c98577714962187e4", key.channel},
		{"sealing key", "f2a65ae591f939933df1a3122d03b3b9b897a019513e7902358775f2635ea2cd", key.sealing},
		{"challenge-plugin", vectorPlugin, pluginProof(key.channel, "my-plugin", "host-1", host, plugin)},
		{"challenge-host", vectorHost, hostProof(key.channel, "my-plugin", "host-1", vectorHash, plugin)},
	} {
		if got := hex.EncodeToString(vector.got); got != vector.want {
			t.Errorf("%s is %s, not %s", vector.name, got, vector.want)
		}
	}
	if key.sealingID != "efa9f01a3c6ce2d7" {
		t.Errorf("the id of the sealing key is %s", key.sealingID)
	}
}

func TestTokenIsGoodForThirtySecondsMore(t *testing.T) {
	keys := vectorKeys(t)
	for seconds, want := range map[int64]string{1700000000: "", 1700000329: "", 1700000331: "TOKEN_EXPIRED"} {
		if got := reason(checkToken(keys, "my-plugin", vectorToken, time.Unix(seconds, 0))); got != want {
			t.Errorf("at %d the token is %q, not %q", seconds, got, want)
		}
	}
	for _, bad := range []string{"", "v1", "v1.a", vectorToken + "0", "v2" + vectorToken[2:], "v1.x.1700000300.zz"} {
		if got := reason(checkToken(keys, "my-plugin", bad, time.Unix(1700000000, 0))); got != "TOKEN_INVALID" {
			t.Errorf("%q is %q", bad, got)
		}
	}
	if got := reason(checkToken(keys, "another", vectorToken, time.Unix(1700000000, 0))); got != "TOKEN_INVALID" {
		t.Errorf("for another plugin it is %q", got)
	}
}

func TestTokensAreThoseOfTheVectors(t *testing.T) {
	key, expiry := vectorKeys(t)[0], time.Unix(1700000300, 0)
	if got := mintToken(key, "my-plugin", "host-1", expiry); got != vectorToken {
		t.Error(got)
	}
	if got := mintToken(key, hostAudience("my-plugin"), "replica-1", expiry); got != vectorHostToken {
		t.Error(got)
	}
}

func TestSecretOpensAsTheVectorSays(t *testing.T) {
	sealed := &typev1.SealedSecret{
		KeyId: "efa9f01a3c6ce2d7", PluginId: "openai-compatible", CredentialId: "main", Version: 1,
		AllowedOrigins: []string{"https://api.openai.com"}, NotAfter: timestamppb.New(time.Unix(1800000000, 0)),
		Ciphertext: unhex(t, vectorSealed),
	}
	keys, now := vectorKeys(t), time.Unix(1799999999, 0)
	opened, err := openSecret(keys, "openai-compatible", sealed, now)
	if err != nil || opened.values["api_key"] != "test-key" {
		t.Fatalf("%v: %v", err, opened)
	}
	for name, attempt := range map[string]func() error{
		"SECRET_EXPIRED": func() error {
			_, err := openSecret(keys, "openai-compatible", sealed, now.Add(2*time.Second))
			return err
		},
		"SECRET_FOREIGN": func() error { _, err := openSecret(keys, "another", sealed, now); return err },
		"SECRET_KEY_UNKNOWN": func() error {
			_, err := openSecret(nil, "openai-compatible", sealed, now)
			return err
		},
		"SECRET_INVALID": func() error {
			sealed.Version++
			defer func() { sealed.Version-- }()
			_, err := openSecret(keys, "openai-compatible", sealed, now)
			return err
		},
	} {
		if got := reason(attempt()); got != name {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestKeysAreReadInEveryForm(t *testing.T) {
	base64 := "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	other := "ff" + vectorKey[2:]
	for text, want := range map[string]int{
		vectorKey: 1, base64: 1, "relay-go=" + base64 + "\nrelay-go=" + other + "\nanother=" + other + "\n": 2,
		"": 0, "another=" + vectorKey: 0, "short": 0,
	} {
		t.Setenv("PATCHBAY_PLUGIN_KEY", text)
		found, err := loadKeys(pluginID)
		if len(found) != want || (err == nil) != (want > 0) {
			t.Errorf("%d keys, %v", len(found), err)
		}
		if want > 0 && !bytes.Equal(found[0].channel, vectorKeys(t)[0].channel) {
			t.Error("the first is another key")
		}
	}
}
