#include "textflag.h"

// func start()
TEXT ·start(SB), NOSPLIT|NOFRAME|TOPFRAME, $0
	MOVQ SP, AX
	SUBQ $32, SP
	ANDQ $~15, SP
	MOVQ AX, 8(SP)

	// Compiled code finds the goroutine in the word before the thread's FS base.
	LEAQ ·noGoroutine(SB), BX
	MOVQ BX, ·threadLocal(SB)
	LEAQ ·threadLocal+8(SB), SI
	MOVQ $0x1002, DI // ARCH_SET_FS
	MOVQ $158, AX    // arch_prctl
	SYSCALL

	MOVQ 8(SP), AX
	MOVQ AX, 0(SP)
	CALL ·quick(SB)

	MOVQ 8(SP), SP
	JMP  _rt0_amd64_linux(SB)
