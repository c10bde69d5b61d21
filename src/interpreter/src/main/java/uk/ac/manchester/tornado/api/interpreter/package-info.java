/**
 * Runs task graphs without TornadoVM: every work-item runs on the JVM, with a device's memory, work-groups and
 * barriers. These types are the interpreter's own; the packages around this one have TornadoVM's API.
 *
 * <ul>
 *   <li>A graph's device memory is a copy of every array; graphs of a plan share a copy if one consumes what another
 *       persisted. It starts with a pattern (NaN for floats), and only transfers move values in or out, so a missing
 *       transfer shows as on a device.
 *   <li>As many virtual threads as there are processors take groups in order. Within a group one work-item runs at a
 *       time, to its end or to a barrier; there its method returns, and it is called again once all have arrived. If a
 *       kernel's bytecode can reach a warp operation, or a barrier in a method that it calls, each work-item has a
 *       virtual thread instead, which lets the next one run when it has to wait.
 *   <li>A kernel that shares memory runs as a copy of its class with checked array accesses: an index out of bounds, or
 *       a load of local memory that was never stored, throws an exception that names the array's variable. If the class
 *       can't be read (a kernel that is not a static method, or was generated), the kernel runs unchanged, and a log
 *       line says so.
 *   <li>With the system property {@code tornadomoe.interpreter.races} set to true when a plan is made, the interpreter
 *       also compares accesses to the same element by different work-items, and runs groups one after the other. It
 *       doesn't compare native arrays read by {@code dp4a} on arrays, or half-precision values in byte arrays.
 * </ul>
 *
 * <p>An error in a kernel is reported as a {@link uk.ac.manchester.tornado.api.interpreter.KernelException}; if several
 * groups fail, the first one's is.
 */
package uk.ac.manchester.tornado.api.interpreter;
