// Package crash has only tests: they run the real agent, the real plugin and the real kernel,
// kill the agent before each of its effects, and fail each of its system calls, and then look
// whether the node is what the runtime was told. See docs/crash.md.
package crash
