// Package timeslice asks the kernel's scheduler for short turns (Linux only).
//
// A kernel from 6.12 on lets those that want little at a time go ahead of those
// that want much (EEVDF; sched_setattr(2), sched_runtime of SCHED_OTHER): on a
// busy node a withdrawal takes its turn when it is due, not when others'
// milliseconds are over. Who asks gets no more of the processor for it, and needs
// no privilege. Older kernels take no notice.
//
// It never touches the policy, the nice value or a thread of another process than
// the caller names, and links next to nothing: flock-slice stands before BIRD's
// every start.
package timeslice
