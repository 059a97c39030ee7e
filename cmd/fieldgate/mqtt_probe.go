package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/uplink"
)

func cmdMQTTTest(ctx context.Context, a *app, args []string) error {
	f := newFlags("mqtt test", "BROKER", `
Tries a broker step by step, as an uplink uses it, and says which step fails,
why, and what to do: name, TCP, proxy, TLS, WebSocket, login, a subscription, a
message and its acknowledgement, and whether the message comes back.

  fieldgate mqtt test mqtts://broker.example
  fieldgate mqtt test mqtts://broker.example --user me --password-file pw
  fieldgate mqtt test -c plant.yaml cloud      the uplink "cloud", all its urls

BROKER is a URL (mqtt:// mqtts:// ws:// wss://) or the name of an uplink. The
client id is one of its own, but for an uplink with a client certificate or
with azure_sas, which brokers know by its id: a gateway that runs with it is
disconnected for a moment. With "clean_session: false" or "status: false"
nothing is subscribed to.
Exit code 0: all went well. 1: the broker refused something. 2: a file of ours
cannot be used. 4: the broker could not be reached or did not answer.`)
	p := brokerPeer{asUplink: true}
	p.wayFlags(f)
	f.StringVar(&a.config, "c", a.config, "configuration `FILE`, for an uplink's name")
	topic := f.String("topic", "", "`TOPIC` to test with (default: status.topic/test; for a URL fieldgate/test)")
	asJSON := f.Bool("json", false, "print a JSON object a step")
	rest, err := f.parse(a, args)
	if err != nil {
		return err
	}
	if len(rest) != 1 {
		return usagef("mqtt test wants a broker, such as: fieldgate mqtt test mqtt://127.0.0.1")
	}
	cfg, err := p.settings(a, rest[0])
	if err != nil {
		return err
	}
	if *topic == "" {
		*topic = testTopic(a.config, rest[0], cfg)
	} else if err := mqtt.ValidTopic(*topic); err != nil {
		return badConfig(err)
	}
	var failed error
	for _, url := range cfg.URLs {
		var tell func(uplink.Passage)
		if *asJSON {
			tell = passageJSON(a.stdout, url)
		} else {
			fmt.Fprintln(a.stdout, url)
			tell = func(p uplink.Passage) { printPassage(a.stdout, p) }
		}
		err := uplink.Test(ctx, cfg, url, *topic, tell)
		if err == nil && *topic == "" && !*asJSON {
			fmt.Fprintln(a.stdout, `  no message was tried, for "status: false" says that the broker takes only topics of its own; name one by --topic`)
		}
		if failed == nil {
			failed = err
		}
	}
	var fault *uplink.Fault
	if errors.As(failed, &fault) { // it has been printed
		var exit exitError
		code := exitFailed
		if errors.As(brokerFailed(failed), &exit) {
			code = exit.code
		}
		return exitError{code: code}
	}
	return failed
}

// testTopic is where a test publishes if nobody says: below what the gateway
// says of itself. It is "" for an uplink that takes only topics of its own.
func testTopic(path, broker string, cfg config.Uplink) string {
	if strings.Contains(broker, "://") {
		return "fieldgate/test"
	}
	if cfg.NoStatus {
		return ""
	}
	whole, err := config.Load(path)
	if err != nil {
		return "fieldgate/test" // it was good a moment ago
	}
	return whole.Status.Topic + "/test"
}

// printPassage prints one step: name, how long it took, what came of it.
func printPassage(w io.Writer, p uplink.Passage) {
	text := p.Text
	if p.Fault != nil {
		text = "FAILED: " + p.Fault.Text
	}
	fmt.Fprintf(w, "  %-9s %8.1f ms  %s\n", p.Step, p.Took.Seconds()*1000, text)
	const indent = "                         "
	for i, c := range p.Certs {
		fmt.Fprintf(w, indent+"%s: %s\n", whose(c), c.Subject)
		if i == 0 {
			fmt.Fprintf(w, indent+"  issuer %s, chain of %d\n", c.Issuer, p.Chain)
			fmt.Fprintf(w, indent+"  SHA-256 %s\n", c.Fingerprint)
		}
		fmt.Fprintf(w, indent+"  ends %s, %s\n", c.NotAfter.UTC().Format(time.DateOnly), daysLeft(c.DaysLeft(time.Now())))
	}
	if p.Fault != nil && p.Fault.Remedy != "" {
		fmt.Fprintf(w, indent+"-> %s\n", p.Fault.Remedy)
	}
}

func whose(c uplink.Certificate) string {
	switch c.Whose {
	case uplink.WhoseOwn:
		return "our certificate"
	case uplink.WhoseAuthority:
		return "its authority, which ends before it"
	}
	return "the broker's certificate"
}

func daysLeft(n int) string {
	if n < 0 {
		return "which is over"
	}
	return "in " + count(n, "day", "days")
}

// passageJSON returns what prints each step as a JSON object.
func passageJSON(w io.Writer, url string) func(uplink.Passage) {
	type certificate struct {
		Whose       string `json:"whose"`
		Subject     string `json:"subject"`
		Issuer      string `json:"issuer"`
		Fingerprint string `json:"fingerprint"`
		Ends        string `json:"ends"`
		DaysLeft    int    `json:"days_left"`
	}
	type step struct {
		URL    string        `json:"url"`
		Step   uplink.Step   `json:"step"`
		OK     bool          `json:"ok"`
		Ms     float64       `json:"ms"`
		Text   string        `json:"text,omitempty"`
		Error  string        `json:"error,omitempty"`
		Remedy string        `json:"remedy,omitempty"`
		Certs  []certificate `json:"certificates,omitempty"`
		Chain  int           `json:"chain_length,omitempty"`
	}
	out := json.NewEncoder(w)
	out.SetEscapeHTML(false)
	return func(p uplink.Passage) {
		s := step{URL: url, Step: p.Step, OK: p.Fault == nil, Ms: float64(p.Took.Microseconds()) / 1000, Text: p.Text, Chain: p.Chain}
		if p.Fault != nil {
			s.Error, s.Remedy = p.Fault.Text, p.Fault.Remedy
		}
		for _, c := range p.Certs {
			s.Certs = append(s.Certs, certificate{c.Whose, c.Subject, c.Issuer, c.Fingerprint, c.NotAfter.UTC().Format(time.RFC3339), c.DaysLeft(time.Now())})
		}
		_ = out.Encode(s) // a reader that has had enough is no fault
	}
}
