#include "textflag.h"

// func start()
TEXT ·start(SB), NOSPLIT|NOFRAME|TOPFRAME, $0
	MOVD RSP, R0
	SUB  $32, RSP
	MOVD R0, 16(RSP)
	MOVD R0, 8(RSP)
	MOVD $·noGoroutine(SB), g
	BL   ·quick(SB)

	MOVD 16(RSP), R0
	MOVD R0, RSP
	B    _rt0_arm64_linux(SB)
