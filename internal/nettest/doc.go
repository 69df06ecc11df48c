// Package nettest gives tests network namespaces of their own in the real
// kernel. A namespace has no name and no mount: it lives as long as the test
// holds it and is gone after the test's cleanup, so tests run in parallel and
// twice, and nothing is ever added to the machine's own namespace. Linux only;
// the tests need CAP_SYS_ADMIN and CAP_NET_ADMIN.
package nettest
