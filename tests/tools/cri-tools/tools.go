//go:build tools

// Package tools pins the CRI client and the CRI conformance suite.
package tools

import (
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
	// the test runner, for critest -parallel
	_ "github.com/onsi/ginkgo/v2/ginkgo"
	// what the critest test binary is made of; its own package holds nothing but a test
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/framework"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
