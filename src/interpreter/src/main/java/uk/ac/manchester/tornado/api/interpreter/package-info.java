/**
 * What runs task graphs where there is no TornadoVM: every work-item on the JVM, with the memory, the groups and the
 * barriers a device has. These types are the interpreter's own; the packages around this one hold TornadoVM's API.
 *
 * <ul>
 *   <li>A graph's device memory is a copy of every array (once for all graphs of a plan where one consumes what another
 *       persisted). It starts with a pattern, floats as not-a-number, and only transfers move values in or out: a
 *       transfer that is missing shows as it would on a device.
 *   <li>Groups are taken in order by as many virtual threads as there are processors. Within a group one work-item runs
 *       at a time, to its end or to a barrier, where its method returns and is called again once all are there. Where a
 *       kernel's bytecode reaches an operation of a warp, or a barrier in a method that it calls, each work-item has a
 *       virtual thread instead, which hands on to the next when it has to wait.
 *   <li>A kernel that shares memory is run as a copy of its class whose array accesses are checked: an index out of
 *       bounds and a load of local memory that nobody stored are exceptions that name the array's variable. Where the
 *       class can't be read (a kernel that is not a static method, or was generated), it is run as it is, and a log
 *       line says so.
 *   <li>With the system property {@code tornadomoe.interpreter.races} set to true when a plan is made, accesses of the
 *       same element by different work-items are compared too, and groups run one after the other. Native arrays read
 *       by {@code dp4a} on arrays, and half-precision values in byte arrays, are not compared.
 * </ul>
 *
 * <p>What is wrong in a kernel is a {@link uk.ac.manchester.tornado.api.interpreter.KernelException}; of several groups
 * that fail the first is reported.
 */
package uk.ac.manchester.tornado.api.interpreter;
