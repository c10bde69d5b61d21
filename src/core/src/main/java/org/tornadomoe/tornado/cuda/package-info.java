/** Kernels in a device's own language, and their execution on TornadoVM's streams. */
@NullMarked
package org.tornadomoe.tornado.cuda;

import org.jspecify.annotations.NullMarked;
