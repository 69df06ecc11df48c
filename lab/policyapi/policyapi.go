//go:build suite

// Package policyapi pins the network-policy-api whose conformance tests a lab runs. It
// is a module of its own, as the tests need other versions of libraries than the lab.
// The import brings what the tests depend on into go.sum. Nothing builds this file.
package policyapi

import _ "sigs.k8s.io/network-policy-api/conformance"
