//go:build tools

// Package tools pins runc, which the benchmark's peer starts containers with.
package tools

import _ "github.com/opencontainers/runc"
