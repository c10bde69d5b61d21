/** Devices: what answers to TornadoVM's API in this JVM, what a device can do, and memory on the host. */
@NullMarked
package org.tornadomoe.tornado.device;

import org.jspecify.annotations.NullMarked;
