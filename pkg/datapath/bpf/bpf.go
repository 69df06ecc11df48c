// Package bpf asks the kernel for programs of BPF that are attached where no request of netlink
// shows them. It loads and changes nothing.
package bpf
