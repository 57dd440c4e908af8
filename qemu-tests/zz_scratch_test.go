package qemutests
import ("testing";"os";"strings";"time")
func TestScratch(t *testing.T) {
	d := Image{}.Build(t)
	m := NewMachine(t, DirectKernel, d).WithTPM()
	m.Config.Args = strings.Fields(os.Getenv("XARGS"))
	m.LoadSlot("a")
	vm := m.Boot()
	vm.UpIn("a")
	key := vm.recoveryKey()
	time.Sleep(time.Second)
	vm.Run("sync")
	vm.PowerOff()
	os.WriteFile("/tmp/g/key", []byte(key), 0o600)
	vm = m.Boot()
	r := vm.UpIn("a")
	t.Log(r.State.Unlocked, failuresText(r))
	vm.PowerOff()
}
