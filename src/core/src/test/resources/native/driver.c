/* Does to signal handlers what an OpenCL driver with LLVM in it does. Built and loaded by SignalHandlersTest. */
#include <signal.h>
#include <stddef.h>

static const int taken[] = {
    SIGHUP, SIGINT, SIGTERM, SIGUSR2, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGSEGV, SIGQUIT, SIGXFSZ};
enum { COUNT = sizeof taken / sizeof *taken };
static struct sigaction old[COUNT];

static void puts_all_back(int signal) {
    (void)signal;
    for (int i = 0; i < COUNT; i++) sigaction(taken[i], &old[i], NULL);
}

static void ignores(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)info, (void)context;
}

/* Handlers that serve one signal, and a lasting one for SIGFPE, such as PoCL's. */
int compile(void) {
    struct sigaction once = {.sa_handler = puts_all_back, .sa_flags = SA_NODEFER | SA_RESETHAND | SA_ONSTACK};
    struct sigaction lasting = {.sa_sigaction = ignores, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigemptyset(&once.sa_mask);
    sigemptyset(&lasting.sa_mask);
    for (int i = 0; i < COUNT; i++) {
        if (sigaction(taken[i], &once, &old[i])) return 1;
    }
    return sigaction(SIGFPE, &lasting, NULL);
}

/* A crash reporter's, which last. */
int report(void) {
    struct sigaction lasting = {.sa_sigaction = ignores, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigemptyset(&lasting.sa_mask);
    return sigaction(SIGBUS, &lasting, NULL) || sigaction(SIGILL, &lasting, NULL) || sigaction(SIGFPE, &lasting, NULL);
}
