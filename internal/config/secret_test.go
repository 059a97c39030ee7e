package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// However a configuration is printed, its passwords do not show.
func TestSecretNeverShows(t *testing.T) {
	cfg := load(t, "uplinks: { u: { url: mqtts://h, username: a, password: hunter2, tls: { cert: a.p12, password: hunter2 } } }")
	var log bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		slog.New(h).Info("x", "uplink", cfg.Uplinks[0], "secret", cfg.Uplinks[0].Password.Plain)
	}
	text, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	secret := cfg.Uplinks[0].Password.Plain
	shown := log.String() + string(text)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		shown += fmt.Sprintf(verb+verb+verb+verb, *cfg, cfg.Uplinks, secret, struct{ u *Uplink }{&cfg.Uplinks[0]})
		shown += fmt.Sprintf(verb, struct{ u Uplink }{cfg.Uplinks[0]})
	}
	for _, leak := range []string{"hunter2", fmt.Sprintf("%x", "hunter2"), fmt.Sprintf("%X", "hunter2"), fmt.Sprint([]byte("hunter2"))} {
		if strings.Contains(shown, leak) {
			t.Errorf("%s shows in %s", leak, shown)
		}
	}
	if !strings.Contains(shown, hidden) {
		t.Errorf("no %s in %s", hidden, shown)
	}
	if got := secret.Reveal(); got != "hunter2" {
		t.Errorf("Reveal() = %q", got)
	}
}

func TestSecretSources(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"pw": "s3cret\r\n", "long": strings.Repeat("x", maxSecret+1)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("FIELDGATE_TEST_SECRET", "fromenv")
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	tests := []struct {
		source SecretSource
		want   string
		fails  string
	}{
		{SecretSource{}, "", ""},
		{SecretSource{Plain: NewSecret("p")}, "p", ""},
		{SecretSource{File: filepath.Join(dir, "pw")}, "s3cret", ""},
		{SecretSource{Credential: "pw"}, "s3cret", ""},
		{SecretSource{Env: "FIELDGATE_TEST_SECRET"}, "fromenv", ""},
		{SecretSource{Env: "FIELDGATE_NOT_SET"}, "", "the environment has no variable FIELDGATE_NOT_SET"},
		{SecretSource{File: filepath.Join(dir, "none")}, "", "no such file"},
		{SecretSource{File: filepath.Join(dir, "long")}, "", "more than 65536"},
	}
	for _, tt := range tests {
		got, err := tt.source.Read()
		switch {
		case tt.fails == "" && (err != nil || got.Reveal() != tt.want):
			t.Errorf("%+v: %q, %v", tt.source, got.Reveal(), err)
		case tt.fails != "" && (err == nil || !strings.Contains(err.Error(), tt.fails)):
			t.Errorf("%+v: error %v, want %s", tt.source, err, tt.fails)
		}
	}
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	if _, err := (SecretSource{Credential: "pw"}).Read(); err == nil || !strings.Contains(err.Error(), "LoadCredential=pw:PATH") {
		t.Errorf("without systemd: %v", err)
	}
}
