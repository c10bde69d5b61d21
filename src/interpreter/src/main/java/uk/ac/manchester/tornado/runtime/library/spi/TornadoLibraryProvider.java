package uk.ac.manchester.tornado.runtime.library.spi;

import uk.ac.manchester.tornado.api.common.LibraryTaskDescriptor;
import uk.ac.manchester.tornado.runtime.common.TornadoXPUDevice;

/** Runs a graph's library tasks; found by {@link java.util.ServiceLoader}. The interpreter looks for none. */
public interface TornadoLibraryProvider {
    /** The library that a task's descriptor names. */
    String libraryName();

    boolean canHandle(TornadoXPUDevice device);

    LibraryContext createContext(TornadoXPUDevice device, long executionPlanId);

    /** Called before every launch, and before a CUDA graph is recorded; here memory may be allocated. */
    default void prepare(LibraryTaskDescriptor descriptor, LibraryContext context) {}

    /** Enqueues the task's work on the plan's stream. */
    void dispatch(String functionName, LibraryInvocation invocation);

    void destroyContext(LibraryContext context);
}
