//go:build soak

package test

import "testing"

func TestSoakKilledGateway(t *testing.T) { killedGateway(t, 200) }
