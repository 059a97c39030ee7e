package main

import (
	"bytes"
	"strings"
	"testing"

	"fieldgate/internal/broker"
)

func TestPasswd(t *testing.T) {
	tests := []struct {
		name, in, password, fails string
	}{
		{"a line", "secret\n", "secret", ""},
		{"no end of line", "secret", "secret", ""},
		{"from Windows", "secret\r\n", "secret", ""},
		{"spaces are part of it", " s p \n", " s p ", ""},
		{"only the first line", "one\ntwo\n", "one", ""},
		{"empty", "\n", "", "the password is empty"},
		{"nothing", "", "", "the password is empty"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			err := cmdPasswd(t.Context(), &app{stdin: strings.NewReader(tt.in), stdout: &out, stderr: &out}, nil)
			if tt.fails != "" {
				if err == nil || err.Error() != tt.fails {
					t.Fatalf("error %v, want %q", err, tt.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			hash := strings.TrimSuffix(out.String(), "\n")
			if ok, err := broker.CheckPassword(hash, tt.password); !ok || err != nil {
				t.Errorf("%q is not the hash of %q: %v", hash, tt.password, err)
			}
			if ok, _ := broker.CheckPassword(hash, tt.password+"x"); ok {
				t.Error("another password fits too")
			}
		})
	}
	if err := cmdPasswd(t.Context(), &app{stdin: strings.NewReader(""), stdout: &bytes.Buffer{}}, []string{"secret"}); err == nil {
		t.Error("a password on the command line is taken")
	}
}
