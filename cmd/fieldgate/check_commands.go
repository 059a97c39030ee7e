package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"fieldgate/internal/config"
)

// printCommands prints what is taken as a command, from whom, and which topic or
// member means which point.
func printCommands(w io.Writer, commands []config.Command) error {
	for i := range commands {
		c := &commands[i]
		fmt.Fprintf(w, "command %s: %s\n", c.Topic, commandText(c))
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		for _, target := range c.Targets {
			switch {
			case c.Kind == config.RecipeCommand:
				fmt.Fprintf(t, "  %s\t%s\n", target.Key, target.Point)
			case c.Kind == config.MatchCommand:
				fmt.Fprintf(t, "  %s = %s\n", target.Point, target.Value)
			case target.Filter == c.Filter:
				fmt.Fprintf(t, "  %s\n", target.Point)
			default:
				fmt.Fprintf(t, "  %s\t%s\n", target.Filter, target.Point)
			}
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// commandText says what a command's messages are, and who may send them.
func commandText(c *config.Command) string {
	var parts []string
	switch c.Kind {
	case config.ValueCommand:
		parts = append(parts, "a value")
	case config.MatchCommand:
		parts = append(parts, fmt.Sprintf("the text %q", c.Match))
	case config.StructuredCommand:
		parts = append(parts, "an object that names the point")
	case config.RecipeCommand:
		parts = append(parts, "an object with a value for each key")
	case config.ReadCommand:
		parts = append(parts, "reads")
	case config.EventCommand:
		parts = append(parts, "to the event log as "+c.Event)
	}
	if c.Emergency {
		parts = append(parts, "emergency")
	}
	parts = append(parts, "from "+strings.Join(c.From, " "))
	if c.Users != nil {
		parts = append(parts, "users "+strings.Join(c.Users, " "))
	}
	if c.Restore {
		parts = append(parts, "retained ones too")
	}
	if c.Ack.Topic != "" {
		parts = append(parts, "answered on "+c.Ack.Topic)
	}
	return strings.Join(parts, ", ")
}
