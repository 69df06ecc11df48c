// Package threads has the kernel's scheduler give the agent's threads a processor soon, as a
// withdrawal on a busy node waits for nothing else.
//
// All threads have short time slices. If asked to, it gives them real-time priority once the
// agent has started, all of them: a goroutine runs on any, and one that waits holds up the
// others. What takes long must not keep other programs from the processor, so a thread that
// does not wait for anything for [burst] costs all of them their priority for [pause].
package threads
