package config

import (
	"net"
	"syscall"
	"testing"
)

// A host that is gone without a word is noticed by the kernel, on every connection of walhook.
func TestIdleConnectionsToADeadHostEndSoon(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for _, more := range []string{"", "?connect_timeout=3"} {
		parsed, _, err := parseConnection("postgres://" + listener.Addr().String() + "/app" + more)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := parsed.ConnConfig.DialFunc(t.Context(), "tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if idle, interval, count := keepAlive(t, conn); idle+interval*count > 15 {
			t.Errorf("%q: probed after %d s, %d times, %d s apart", more, idle, count, interval)
		}
	}
}

func keepAlive(t *testing.T, conn net.Conn) (idle, interval, count int) {
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		for option, to := range map[int]*int{syscall.TCP_KEEPIDLE: &idle, syscall.TCP_KEEPINTVL: &interval, syscall.TCP_KEEPCNT: &count} {
			if *to, err = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, option); err != nil {
				t.Error(err)
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	return idle, interval, count
}
