package regmap

import (
	"os"
	"strings"
	"testing"

	"fieldgate/internal/config"
)

// The configurations on the page load as they stand there.
func TestDocs(t *testing.T) {
	page, err := os.ReadFile("../../docs/modbus-server.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(page), "```yaml\n")[1:]
	for _, b := range blocks {
		text, _, _ := strings.Cut(b, "```")
		if _, err := config.LoadBytes("modbus-server.md", []byte(text)); err != nil {
			t.Errorf("%v\n%s", err, text)
		}
	}
	if len(blocks) != 2 {
		t.Errorf("%d configurations", len(blocks))
	}
}
